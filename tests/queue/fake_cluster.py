"""A cluster that runs jobs, without one: what stands behind the dispatcher's client in its tests.

All of it is in a folder, so that it outlives a dispatcher that is killed, and several dispatchers may use it. It does
to a run folder what a driver does: only for the attempt that may run there, and what it says of a submission follows
from the time. It runs nothing, and so holds no run's lock; a test that needs it held holds it itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from raygen.capacity import Capacity
from raygen.errors import Cause, ClusterUnreachableError, RunError
from raygen.queue.client import Submitted
from raygen.queue.job import Placement
from raygen.runs import Run
from raygen.runs import State as RunState

UNTIL_TOLD = 1e9
"""Seconds that a submission takes where the test says when it starts, or ends."""

ENDLESS, UNLUCKY = "endless", "unlucky"
"""How names of jobs begin that run until they are told to stop, and of those that lose their first attempt."""


class FakeCluster:
    """The cluster in a folder. Submissions start after `start_s` seconds and finish after `run_s` more."""

    def __init__(self, folder: Path, *, cpus: int = 4, start_s: float = UNTIL_TOLD, run_s: float = UNTIL_TOLD) -> None:
        self._folder = folder
        self._start_s, self._run_s = start_s, run_s
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not self._file.exists():
                self._save(
                    {
                        "cpus": cpus,
                        "is_reachable": True,
                        "is_full": False,
                        "loses_response": False,
                        "submissions": {},
                        "accepted": [],
                        "stops": [],
                        "overlaps": [],
                    }
                )

    # What the dispatcher does: raygen.queue.client.JobsClient

    def capacity(self) -> Capacity:
        """What it has in all."""
        with self._reached() as cluster:
            return Capacity.of_machine(gpus=0, cpus=cluster["cpus"], where="the fake cluster")

    def placements(self) -> dict[str, Placement]:
        """Where the one process of each running submission is, unless it was told to have no room."""
        with self._reached() as cluster:
            return {
                each["id"]: Placement(places={}, pending=1)
                if cluster["is_full"]
                else Placement(places={"0": 1}, pending=0)
                for each in cluster["submissions"].values()
                if each["state"] == "running"
            }

    def submit(self, submission_id: str, folder: Path, attempt: int) -> None:
        """Accept a submission, unless it is known."""
        with self._reached() as cluster:
            if submission_id not in cluster["submissions"]:
                job = str(folder)
                starts_at = time.time() + self._start_s
                run_s = UNTIL_TOLD if folder.name.startswith(ENDLESS) else self._run_s
                others = [each for each in cluster["submissions"].values() if each["folder"] == job]
                overlapping = [each["id"] for each in others if each["state"] != "ended"]
                cluster["overlaps"] += [[other, submission_id] for other in overlapping]
                cluster["accepted"].append([submission_id, job, os.getpid()])
                cluster["submissions"][submission_id] = {
                    "id": submission_id,
                    "folder": job,
                    "attempt": attempt,
                    "state": "pending",
                    "message": "",
                    "starts_at": starts_at,
                    "ends_at": starts_at + run_s,
                }
            loses_response, cluster["loses_response"] = cluster["loses_response"], False
        if loses_response:
            raise ClusterUnreachableError("the fake cluster's answer was lost")

    def find(self, submission_id: str) -> Submitted | None:
        """The submission as it is now."""
        with self._reached() as cluster:
            submission = cluster["submissions"].get(submission_id)
            return submission and Submitted(submission["state"], submission["message"])

    def stop(self, submission_id: str) -> None:
        """End a submission's processes, without a word."""
        with self._reached() as cluster:
            cluster["stops"].append(submission_id)
            submission = cluster["submissions"].get(submission_id)
            if submission:
                submission.update(state="ended", message="stopped")

    # What happens to it

    def become_unreachable(self) -> None:
        """Answer nobody from now on; what runs goes on."""
        with self._changed() as cluster:
            cluster["is_reachable"] = False

    def become_reachable(self) -> None:
        """Answer again."""
        with self._changed() as cluster:
            cluster["is_reachable"] = True

    def be_full(self, is_full: bool) -> None:
        """Have no room for processes, as if others had taken it."""
        with self._changed() as cluster:
            cluster["is_full"] = is_full

    def lose_the_next_response(self) -> None:
        """Do what is submitted next, but never answer."""
        with self._changed() as cluster:
            cluster["loses_response"] = True

    def restart(self) -> None:
        """End everything without a word, and know nothing of it any more."""
        with self._changed() as cluster:
            cluster["submissions"] = {}

    def start(self, job: str) -> None:
        """Have the job's submission run from now on."""
        with self._changed() as cluster:
            _current(cluster, job)["starts_at"] = 0

    def end(self, job: str, state: RunState = "finished", reason: str = "", cause: Cause = "error") -> None:
        """Have the job's submission end now, leaving that state in its run folder."""
        self.start(job)
        with self._changed() as cluster:
            submission = _current(cluster, job)
            submission.update(state="ended", message="")
            Run(Path(submission["folder"])).set_status(state, reason, cause=cause)

    def end_without_a_word(self, job: str, message: str = "") -> None:
        """Have the processes of the job's submission be gone; all that tells is the cluster's message."""
        with self._changed() as cluster:
            _current(cluster, job).update(state="ended", message=message)

    # What came of it

    def accepted(self, job: str | None = None) -> list[str]:
        """The submissions that it ever accepted, of one job or of all, the first first."""
        with self._changed() as cluster:
            return [each for each, folder, _ in cluster["accepted"] if job in (None, Path(folder).name)]

    def submitters(self) -> set[int]:
        """The processes that it accepted submissions from."""
        with self._changed() as cluster:
            return {pid for _, _, pid in cluster["accepted"]}

    def stops(self) -> list[str]:
        """The submissions that it was told to end, each as often as it was told."""
        with self._changed() as cluster:
            return list(cluster["stops"])

    def check(self) -> None:
        """Fail where a submission was accepted twice, or two attempts at a job were to run at once."""
        with self._changed() as cluster:
            ids = [each for each, _, _ in cluster["accepted"]]
            assert len(set(ids)) == len(ids), "a submission was accepted twice"
            assert cluster["overlaps"] == [], "two attempts at a job ran at once"

    @contextmanager
    def _reached(self) -> Iterator[dict[str, Any]]:
        with self._changed() as cluster:
            if not cluster["is_reachable"]:
                raise ClusterUnreachableError("the fake cluster does not answer")
            yield cluster

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        with FileLock(self._folder / "lock"):
            cluster = json.loads(self._file.read_text())
            before = json.dumps(cluster)
            _go_on(cluster)
            yield cluster
            if json.dumps(cluster) != before:
                self._save(cluster)

    @property
    def _file(self) -> Path:
        return self._folder / "cluster.json"

    def _save(self, cluster: dict[str, Any]) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(cluster))
        partial.replace(self._file)


def _current(cluster: dict[str, Any], job: str) -> dict[str, Any]:
    [current] = [
        each
        for each in cluster["submissions"].values()
        if Path(each["folder"]).name == job and each["state"] != "ended"
    ]
    return current  # type: ignore[no-any-return]


def _go_on(cluster: dict[str, Any]) -> None:
    """Do what the submissions have done since somebody looked. Doing it twice, after a kill half way, is the same."""
    now = time.time()
    for submission in cluster["submissions"].values():
        if submission["state"] == "ended":
            continue
        try:
            run = Run(Path(submission["folder"]))
            if submission["state"] == "pending" and submission["starts_at"] <= now:
                if run.is_attempt(submission["attempt"]):
                    run.set_status("running")
                    submission.update(state="running")
                else:
                    submission.update(state="ended", message="exit code 3")
            if submission["state"] == "running" and submission["ends_at"] <= now:
                if run.name.startswith(UNLUCKY) and submission["attempt"] == 1:
                    run.set_status("failed", "a node was lost", cause="lost")
                else:
                    run.set_status("finished")
                submission.update(state="ended")
        except RunError:  # somebody deleted the run folder
            submission.update(state="ended", message="exit code 2")
