"""What the background of one storage does to another's on the same machine: nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygen import machine, processes
from raygen.capacity import Capacity
from raygen.cluster import session
from raygen.cluster.head import Head
from raygen.cluster.marks import Marks
from raygen.cluster.service import Ended, Service
from raygen.errors import ServiceError, StorageError
from raygen.queue.job import EVERYBODY, JobState, RegisteredDispatcher, Request
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.storage import Storage
from tests.typed_commands import RAYGEN, wait_until

NOBODY = "http://127.0.0.1:9"
"""A dashboard that does not answer: its dispatchers wait."""


@pytest.fixture
def storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Storage, Storage]:
    """Two storages whose jobs are in one queue."""
    monkeypatch.setenv("RAYGEN_DB", f"sqlite:///{tmp_path / 'queue.sqlite'}")
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    return Storage(tmp_path / "mine"), Storage(tmp_path / "other")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a command, which is ended after the test."""
    with ExitStack() as stack:

        def started(*command: str | Path) -> subprocess.Popen[bytes]:
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            return process

        yield started


def request(name: str, storage: Storage, cluster: str) -> Request:
    """A job for one CPU core."""
    about: dict[str, Any] = {
        "kind": "train",
        "model": "ae",
        "data": "digits",
        "objective": "val_mse",
    }
    devices: dict[str, Any] = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
    return Request(name=name, storage=storage.url, cluster=cluster, user=machine.user(), **about, **devices)


HESITANT = """
import sys, time
from pathlib import Path
from raygen.cluster import head, service
from raygen.queue import dispatcher

def slow(holder, name):
    plain = getattr(holder, name)
    def slowly(*arguments):
        Path(sys.argv[2]).touch()
        while not Path(sys.argv[2]).with_name("goes-on").exists():
            time.sleep(0.05)
        return plain(*arguments)
    setattr(holder, name, slowly)

slow(*{"leaving": (dispatcher.Dispatcher, "leave"), "stopping": (head.Head, "stop")}[sys.argv[3]])
service.main(sys.argv[1], sys.argv[4])
"""
"""A background dispatcher that says when it begins to leave, or to end its head, and waits until it may go on."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["leaving", "stopping"])
def test_a_job_that_is_queued_while_the_background_ends_is_looked_after(
    storages: tuple[Storage, Storage],
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    moment: str,
) -> None:
    mine, _ = storages
    store, service = Store.open(mine), Service(mine, NOBODY)
    ending = start(sys.executable, "-c", HESITANT, mine.url, tmp_path / "begun", moment, NOBODY)
    try:
        wait_until((tmp_path / "begun").exists, f"the idle dispatcher to be {moment}")
        before = {each.id for each in store.dispatchers()}
        store.submit(request("job", mine, NOBODY))
        ensuring = threading.Thread(target=service.ensure, args=[store])
        ensuring.start()
        if moment == "leaving":
            ensuring.join()  # it counts on the one that has not left yet, which must think better of it
        (tmp_path / "goes-on").touch()
        ensuring.join()

        def working() -> list[int]:
            return [each.pid for each in store.dispatchers() if each.id not in before and service.works(each)]

        wait_until(lambda: len(working()) == 1, "a dispatcher that begins")
        assert (working() == [ending.pid]) == (moment == "leaving")
        assert (ending.poll() is None) == (moment == "leaving")
    finally:
        service.down(store)


def test_a_dispatcher_works_as_long_as_its_process_runs(
    storages: tuple[Storage, Storage],
    start: Callable[..., subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, service, here = Store.open(storages[0]), Service(storages[0], NOBODY), socket.gethostname()

    def works(host: str, pid: int, process: str, *, is_alive: bool = True) -> bool:
        about = {"id": 1, "cluster": NOBODY, "registered_at": 0.0, "user": "", "away": {}}
        return service.works(
            RegisteredDispatcher(host=host, pid=pid, process=process, is_alive=is_alive, **about)  # type: ignore[arg-type]
        )

    process = start("sleep", "60")
    known = processes.identity(process.pid) or ""
    store.register(NOBODY, host=here, pid=process.pid, process=known)
    [registered] = store.dispatchers()
    assert registered.process == known
    assert service.works(registered)
    boot_time = psutil.boot_time() + 3600
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: boot_time)
    assert service.works(registered), "however the clock was set"
    assert works(here, process.pid, known, is_alive=False), "also when it could not renew its lease"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert works(here, process.pid, known)
    assert not works(here, process.pid, known, is_alive=False), "suspended for longer than its lease"
    process.send_signal(signal.SIGCONT)
    other_machine = "another start, or a machine or container of the same name/4711"
    assert works(here, 2**22, other_machine), "numbers there mean nothing here"
    assert not works(here, 2**22, other_machine, is_alive=False)
    with monkeypatch.context() as hidden:  # another user's, and /proc shows this user's own alone
        hidden.setattr(processes, "identity", lambda pid: None)
        hidden.setattr(processes, "is_hidden", lambda pid: True)
        assert works(here, process.pid, known)
        assert not works(here, process.pid, known, is_alive=False)
    process.kill()
    process.wait()
    assert not service.works(registered)


def test_a_dispatcher_that_does_not_start_is_told_with_its_last_words(
    storages: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, store = Service(storages[0], NOBODY), Store.open(storages[0])
    monkeypatch.setenv("PYTHONPATH", str(storages[0].folder))
    assert storages[0].folder is not None
    (storages[0].folder / "raygen").mkdir(parents=True)
    (storages[0].folder / "raygen" / "__init__.py").write_text("raise SystemExit('no such library')")
    with pytest.raises(
        ServiceError,
        match=r"^the dispatcher did not start: no such library \(see .*dispatcher-http-.*-9\.log\)$",
    ):
        service.ensure(store)


@pytest.mark.slow
def test_down_ends_the_dispatchers_of_its_storage_alone(
    storages: tuple[Storage, Storage], start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    mine, other = storages
    store = Store.open(mine)
    of_mine, of_other = (start(RAYGEN, "dispatch", "--storage", each.url, "--address", NOBODY) for each in storages)
    wait_until(lambda: len(store.dispatchers()) == 2, "two dispatchers")
    assert Service(mine, None).down(store) == Ended(dispatchers=1, jobs=0, head=False)
    assert of_mine.poll() is not None
    assert of_other.poll() is None
    assert [each.pid for each in store.dispatchers()] == [of_other.pid]
    assert Service(other, None).down(store) == Ended(dispatchers=1, jobs=0, head=False)
    assert Service(other, None).down(store) == Ended(dispatchers=0, jobs=0, head=False)
    assert of_other.poll() is not None


def test_down_leaves_jobs_of_another_storages_dispatcher_alone(
    storages: tuple[Storage, Storage], start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    mine, other = storages
    store, here = Store.open(mine), session.cluster_name(None)
    alive = start("sleep", "60")
    store.submit(request("job", other, here))
    dispatcher = store.register(
        here, host=socket.gethostname(), pid=alive.pid, process=processes.identity(alive.pid) or ""
    )
    # What a dispatcher of this storage has left that was killed: its number is the other's now.
    folder = machine.state_folder(mine)
    machine.make_private(folder)
    (folder / f"dispatcher-{alive.pid}").write_text("another start of this machine/4711")
    store.saw(here, Capacity.of_machine(gpus=0, cpus=1, where="here"))
    job = store.claim(dispatcher)
    assert job is not None
    with pytest.raises(ServiceError, match="already runs the queue's jobs for another storage; type `raygen down`"):
        Service(mine, None).up(store, Capacity.of_machine(gpus=0, cpus=1, where="here"))
    assert Service(mine, None).down(store) == Ended(dispatchers=0, jobs=0, head=False)
    assert alive.poll() is None
    assert store.get(job.id) == job
    assert job.state is JobState.STARTING


def test_down_ends_the_head_whatever_becomes_of_storages(
    storages: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine, _ = storages
    store, here = Store.open(mine), session.cluster_name(None)
    service = Service(mine, None)
    machine.make_private(service.folder)
    dispatcher = store.register(here, host="another", pid=1, user=machine.user())
    store.saw(here, Capacity.of_machine(gpus=0, cpus=9, where="here"))
    silent, odd = Storage(tmp_path / "silent"), Storage(tmp_path / "odd")
    for number, storage in enumerate((silent, odd, mine)):
        storage.mark()
        store.submit(request(f"job-{number}", storage, here))
        assert store.claim(dispatcher) is not None
    released, asked, stopped = threading.Event(), [], []

    def ask_to_stop(run: Run, attempt: int) -> None:
        if run.storage.url == silent.url:
            released.wait(20)
        if run.storage.url == odd.url:
            raise ValueError("an address that this version does not know, say")
        asked.append(run.name)

    monkeypatch.setattr(Run, "ask_to_stop", ask_to_stop)
    monkeypatch.setattr(Head, "address", NOBODY)
    monkeypatch.setattr(Head, "stop", lambda head: stopped.append(head))
    try:
        assert service.down(store) == Ended(dispatchers=0, jobs=3, head=True)
    finally:
        released.set()
    assert asked == ["job-2"]
    assert len(stopped) == 1


def test_up_beside_a_colleague_who_runs_everybodys_jobs_says_so(
    storages: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, here = Store.open(storages[0]), session.cluster_name(None)
    store.register(here, host=socket.gethostname(), pid=1, process=processes.identity(1) or "", user=EVERYBODY)
    monkeypatch.setattr(machine, "user_of", lambda uid: "colleague")
    with pytest.raises(ServiceError, match=r"^colleague runs everybody's jobs on this machine, yours too"):
        Service(storages[0], None).up(store, Capacity.of_machine(gpus=0, cpus=1, where="here"))


def test_what_killed_dispatchers_left_is_removed(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    mine, here = tmp_path / f"dispatcher-{os.getpid()}", (processes.identity(os.getpid()) or "").rpartition("/")[0]
    others = {"dispatcher-1": processes.identity(1) or "", "dispatcher-3": "another machine/7", "dispatcher-x.log": ""}
    for name, content in {**others, "dispatcher-2": f"{here}/1"}.items():
        (tmp_path / name).write_text(content)
    with marks.marked():
        assert {each.name for each in tmp_path.iterdir()} == {*others, mine.name}
    assert not mine.exists()


def test_dispatchers_of_two_clusters_have_logs_of_their_own(storages: tuple[Storage, Storage]) -> None:
    logs = [Service(storages[0], address).log.name for address in (None, "http://10.0.0.1:8265", "https://host/ray")]
    assert logs == ["dispatcher.log", "dispatcher-http-10.0.0.1-8265.log", "dispatcher-https-host-ray.log"]


def test_a_dispatcher_that_had_nothing_to_do_any_more_did_start(
    storages: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, service = Store.open(storages[0]), Service(storages[0], NOBODY)
    machine.make_private(service.folder)
    monkeypatch.setattr(sys, "executable", "true")
    service.ensure(store)
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ServiceError, match="it said nothing"):
        service.ensure(store)


def test_a_storage_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    storage = Storage(tmp_path / "runs")
    Service(storage, None).check_storage()
    assert storage.list("") == []
    passed = list(machine.state_folder(storage).iterdir())
    (tmp_path / "runs").rmdir()
    (tmp_path / "runs").write_text("a file now, at which a second try would fail")
    Service(storage, None).check_storage()
    assert list(machine.state_folder(storage).iterdir()) == passed


def test_a_storage_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_STATE", str(tmp_path / "state"))
    storage = Storage(tmp_path / "runs")
    (tmp_path / "runs").write_text("")
    for _ in range(2):
        with pytest.raises(StorageError, match=str(tmp_path / "runs")):
            Service(storage, None).check_storage()
    (tmp_path / "runs").unlink()
    Service(Storage(tmp_path / "runs"), None).check_storage()


@pytest.mark.slow
def test_a_background_dispatcher_ends_when_the_queue_was_upgraded(
    storages: tuple[Storage, Storage], start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    store = Store.open(storages[0])
    process = start(sys.executable, "-m", "raygen.cluster.service", storages[0].url, NOBODY)
    wait_until(lambda: store.cluster(NOBODY).unreachable_since is not None, "a look at the cluster")
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql("UPDATE clusters SET unreachable_since = NULL")  # so that it writes again
    assert process.wait(30) == 0
