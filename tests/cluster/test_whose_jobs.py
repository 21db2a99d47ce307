"""Whose jobs the dispatchers of this machine start: those of who runs them, or everybody's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from raygen import machine, processes
from raygen.capacity import Capacity
from raygen.cluster import session
from raygen.cluster.service import Service
from raygen.cluster.standing import Standing
from raygen.errors import ServiceError
from raygen.queue.job import EVERYBODY, Job, RegisteredDispatcher, Request
from raygen.queue.store import Store
from raygen.site import Site
from raygen.storage import Storage

HERE = session.cluster_name(None)
SOMEBODY = "somebody-else"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    return Storage(tmp_path / "runs")


@pytest.fixture
def store(storage: Storage) -> Store:
    return Store.open(storage)


@pytest.fixture
def service(storage: Storage) -> Service:
    service = Service(storage, None)
    machine.make_private(service.folder)
    return service


def stay(service: Service, *, all_users: bool) -> None:
    Standing(service.folder).begin(Capacity.of_machine(gpus=0, cpus=1, where="here"), all_users=all_users)


def registered(store: Store, user: str) -> RegisteredDispatcher:
    """A dispatcher, which this process stands for."""
    pid = os.getpid()
    process = processes.identity(pid) or ""
    number = store.register(HERE, host=socket.gethostname(), pid=pid, user=user, process=process)
    [found] = [each for each in store.dispatchers() if each.id == number]
    return found


def queued(store: Store, storage: Storage, user: str) -> Job:
    devices = {"processes": 1, "fewest_processes": 1, "gpus_each": 0.0, "cpus_each": 1}
    about = {"kind": "train", "model": "ae", "data": "digits", "objective": "val_mse", "cluster": HERE}
    return store.submit(Request(name=f"of-{user}", storage=storage.url, user=user, **about, **devices))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("all_users", "of", "works"),
    [
        (False, "me", True),
        (False, EVERYBODY, True),
        (False, SOMEBODY, False),
        (True, EVERYBODY, True),
        (True, "me", False),
        (True, SOMEBODY, False),
    ],
)
def test_a_dispatcher_is_relied_on_if_it_starts_the_jobs_that_are_meant(
    store: Store, service: Service, all_users: bool, of: str, works: bool
) -> None:
    stay(service, all_users=all_users)
    dispatcher = registered(store, machine.user() if of == "me" else of)
    assert service.works(dispatcher) is works
    assert service.runs(dispatcher)


def test_up_that_cannot_be_read_is_not_for_everybody_until_it_is_typed_again(service: Service) -> None:
    (service.folder / "up.json").write_text("nonsense")
    assert service.user == machine.user()
    with pytest.raises(ServiceError, match="type `raygen up` again"):
        service.standing.capacity()
    stay(service, all_users=True)
    assert service.user == EVERYBODY


def test_a_user_is_idle_while_others_jobs_wait(store: Store, storage: Storage) -> None:
    queued(store, storage, SOMEBODY)
    assert store.is_idle(HERE, user=machine.user())
    assert not store.is_idle(HERE)
    assert not store.is_idle(HERE, user=SOMEBODY)


def test_no_dispatcher_is_started_for_a_job_that_it_would_not_start(
    store: Store, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(Service, "ensure", lambda service, store: started.append(service.cluster))
    site = Site(storage.url)
    site.tend(queued(store, storage, SOMEBODY))
    assert started == []
    site.tend(queued(store, storage, machine.user()))
    assert started == [HERE]


def test_status_tells_whose_jobs_dispatchers_start(store: Store, storage: Storage) -> None:
    registered(store, SOMEBODY)
    [found] = Site(storage.url).status()["dispatchers"]
    assert (found["user"], found["alive"]) == (SOMEBODY, True)
