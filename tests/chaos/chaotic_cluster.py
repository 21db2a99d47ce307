"""The fake cluster, seen through a client that fails, and with more that can happen to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raygen.errors import ClusterUnreachableError
from tests.queue.fake_cluster import FakeCluster


class ChaoticCluster(FakeCluster):
    """The fake cluster, and the drivers that live without its knowledge."""

    def drivers(self) -> dict[str, list[int]]:
        """The attempts of each job whose drivers run now, as far as the cluster knows them."""
        with self._changed() as cluster:
            running: dict[str, list[int]] = {}
            for each in cluster["submissions"].values():
                if each["state"] == "running":
                    running.setdefault(each["name"], []).append(each["attempt"])
            return running

    def lose_track_of(self, job: str) -> None:
        """Know nothing of a job's submissions any more; its driver may live on."""
        with self._changed() as cluster:
            submissions = cluster["submissions"]
            cluster["submissions"] = {key: each for key, each in submissions.items() if each["name"] != job}


class FaultyClient:
    """A client of a cluster, whatever its methods are, between whose calls something may happen."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._calls = 0
        self._due: dict[int, Callable[[], None]] = {}

    def interrupt(self, calls: int, event: Callable[[], None]) -> None:
        """Have something happen before or after one of the next calls: before the first one is 0, after it 1."""
        self._due = {self._calls + calls: event}

    def calm(self) -> None:
        """Have nothing happen any more."""
        self._due = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._cluster, name)

        def call(*arguments: Any) -> Any:
            self._step()
            answer = method(*arguments)
            self._step()
            return answer

        return call

    def _step(self) -> None:
        event = self._due.pop(self._calls, None)
        self._calls += 1
        if event is not None:
            event()


def not_answer() -> None:
    """Be silent for one call, or lose its answer."""
    raise ClusterUnreachableError("the fake cluster's answer was lost: <html>[/red]\x1b[31m502 does not exist")
