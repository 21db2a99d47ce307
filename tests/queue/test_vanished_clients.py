"""Clients of a PostgreSQL that vanish in the middle of a transaction, and locks that are not given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fake_cluster import FakeCluster
from making import CLUSTER, DEVICES, queue_job
from queue_databases import fresh_database, without_postgres

from raygen.capacity import Capacity
from raygen.errors import QueueError
from raygen.queue import database
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import JobState, Request
from raygen.queue.schema import clusters
from raygen.queue.store import Store

pytestmark = without_postgres

BOX = Capacity.of_machine(gpus=0, cpus=4, where="the fake cluster")

HOLDS_THE_CLUSTER = """
import sys, time
import sqlalchemy as sa
from raygen.queue import database
from raygen.queue.schema import clusters
from raygen.queue.store import Store
database.IDLE_TIMEOUT_S = 1.0
queue = Store(sa.make_url(sys.argv[1]))
with database.writing(queue.engine) as connection:
    connection.execute(sa.select(clusters).with_for_update()).all()
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Store]:
    with fresh_database("postgresql", tmp_path) as url:
        queue = Store(url)
        yield queue
        queue.engine.dispose()


def request(name: str = "job") -> Request:
    about: dict[str, Any] = {"kind": "train", "model": "ae", "data": "digits", "objective": "val_mse", "user": "me"}
    return Request(name=name, storage="/runs", cluster=CLUSTER, **about, **DEVICES)


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_a_client_that_vanishes_while_it_holds_the_cluster_stalls_others_for_seconds(
    queue: Store, end: signal.Signals
) -> None:
    dispatcher = queue.register(CLUSTER, host="here", pid=1)
    queue.saw(CLUSTER, BOX)
    queue.submit(request())
    url = queue.engine.url.render_as_string(hide_password=False)
    holder = subprocess.Popen([sys.executable, "-c", HOLDS_THE_CLUSTER, url], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, end)
        began_at = time.monotonic()
        claimed = queue.claim(dispatcher)
        assert claimed is not None
        assert claimed.state is JobState.STARTING
        assert time.monotonic() - began_at < 5
    finally:
        holder.kill()
        holder.communicate()


def test_who_waits_for_a_lock_waits_longer_than_one_who_has_vanished_keeps_it() -> None:
    assert database.IDLE_TIMEOUT_S < database.LOCK_TIMEOUT_S < database.STATEMENT_TIMEOUT_S


def test_a_lock_that_is_never_given_back_is_an_error_that_dispatchers_outlive(
    queue: Store, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.3)
    impatient = Store(queue.engine.url)
    dispatcher = Dispatcher(impatient, FakeCluster(tmp_path / "cluster"), CLUSTER)
    dispatcher.tick()
    job = queue_job(queue, storage)
    with queue.engine.begin() as connection:
        connection.execute(sa.select(clusters).with_for_update()).all()
        with pytest.raises(QueueError, match=r"^the queue postgresql.* cannot be used: .*lock timeout$"):
            dispatcher.tick()
    dispatcher.tick()
    assert queue.get(job.id).state is JobState.STARTING
    impatient.engine.dispose()


def test_a_statement_without_end_is_an_error(queue: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 0.3)
    impatient = Store(queue.engine.url)
    with (
        pytest.raises(QueueError, match="statement timeout"),
        database.reading(impatient.engine) as connection,
    ):
        connection.exec_driver_sql("SELECT pg_sleep(60)")
    assert impatient.list() == []
    impatient.engine.dispose()


def test_a_client_that_wakes_up_after_its_transaction_was_ended_goes_on(
    queue: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_TIMEOUT_S", 0.3)
    sleepy = Store(queue.engine.url)

    def nap() -> None:
        with database.writing(sleepy.engine) as connection:
            time.sleep(1)
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(QueueError, match=r"cannot be used: .*idle-in-transaction"):
        nap()
    assert sleepy.submit(request()).state is JobState.QUEUED
    sleepy.engine.dispose()


def test_what_a_person_writes_in_the_address_counts_more(queue: Store) -> None:
    url = queue.engine.url
    options = f"{url.query['options']} -c lock_timeout=77s"
    own = Store(url.update_query_dict({"options": options, "keepalives_idle": "99"}))
    with database.reading(own.engine) as connection:
        found = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
        }
    assert found == {
        "lock_timeout": "77s",
        "statement_timeout": f"{database.STATEMENT_TIMEOUT_S:g}s",
        "idle_in_transaction_session_timeout": f"{database.IDLE_TIMEOUT_S:g}s",
    }
    own.engine.dispose()
