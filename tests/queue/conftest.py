"""A queue, a cluster without machines, and a dispatcher between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fake_cluster import FakeCluster
from making import CLUSTER
from queue_databases import DATABASES, fresh_database

from raygen.queue import dispatcher as dispatcher_module
from raygen.queue import job as job_module
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.store import Store
from raygen.storage import Storage

NEVER_S = 1e9


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    """A cluster of four CPU cores, where submissions start and end when told."""
    cluster = FakeCluster(tmp_path / "cluster")
    yield cluster
    cluster.check()


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.URL]:
    """An empty database of each kind."""
    with fresh_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def store(database: sa.URL) -> Iterator[Store]:
    """An empty queue in it."""
    store = Store(database)
    yield store
    store.engine.dispose()


@pytest.fixture
def queue(storage: Path) -> Store:
    return Store.open(Storage(storage))


@pytest.fixture
def dispatcher(queue: Store, cluster: FakeCluster) -> Dispatcher:
    return Dispatcher(queue, cluster, CLUSTER)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was lost is tried again at the next look; who is asked to stop has for ever."""
    monkeypatch.setattr(job_module, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(dispatcher_module, "STOP_GRACE_S", NEVER_S)
