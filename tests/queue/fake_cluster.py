"""A cluster that runs jobs, without one: what stands behind the dispatcher's client in its tests.

All of it is in a folder, so that it outlives a dispatcher that is killed, and several dispatchers may use it. It does
to a run's record what a driver does: only for an attempt that may begin, and what it says of a submission follows from
the time. It runs nothing, and so holds no run's lock and gives no signs of life; a test that needs either sees to it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from raygen.capacity import Capacity
from raygen.errors import Cause, ClusterUnreachableError, JobRefusedError, RunError, StorageError
from raygen.queue.client import Submitted
from raygen.queue.job import Job, Placement
from raygen.record.attempt import Attempt
from raygen.record.documents import RunState
from raygen.record.layout import RunKeys
from raygen.record.reading import Reader
from raygen.storage import Storage

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
                        "answer_s": 0.0,
                        "refusals": {},
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

    def submit(self, job: Job) -> None:
        """Accept the submission of a job's current attempt, unless it is known."""
        submission_id = job.submission_id
        with self._reached() as cluster:
            if (refusal := cluster["refusals"].get(job.name)) is not None:
                raise JobRefusedError("the fake cluster refuses it", for_good=refusal)
            if submission_id not in cluster["submissions"]:
                starts_at = time.time() + self._start_s
                run_s = UNTIL_TOLD if job.name.startswith(ENDLESS) else self._run_s
                others = [each for each in cluster["submissions"].values() if each["name"] == job.name]
                overlapping = [each["id"] for each in others if each["state"] != "ended"]
                cluster["overlaps"] += [[other, submission_id] for other in overlapping]
                cluster["accepted"].append([submission_id, job.name, os.getpid()])
                cluster["submissions"][submission_id] = {
                    "id": submission_id,
                    "storage": job.storage,
                    "name": job.name,
                    "attempt": job.attempt,
                    "state": "pending",
                    "message": "",
                    "starts_at": starts_at,
                    "ends_at": starts_at + run_s,
                }
            loses_response, cluster["loses_response"] = cluster["loses_response"], False
        if loses_response:
            raise ClusterUnreachableError("the fake cluster's answer was lost")

    def submissions(self) -> dict[str, Submitted]:
        """All that it knows, as they are now."""
        with self._reached() as cluster:
            return {name: Submitted(each["state"], each["message"]) for name, each in cluster["submissions"].items()}

    def stop(self, submission_id: str) -> None:
        """End a submission's processes, without a word."""
        with self._reached() as cluster:
            cluster["stops"].append(submission_id)
            submission = cluster["submissions"].get(submission_id)
            if submission:
                submission.update(state="ended", message="stopped")

    def forget(self, submission_id: str) -> None:
        """Know nothing of a submission any more."""
        with self._reached() as cluster:
            submission = cluster["submissions"].get(submission_id)
            if submission and submission["state"] != "ended":
                raise JobRefusedError(f"{submission_id} has not ended", for_good=False)
            cluster["submissions"].pop(submission_id, None)

    # What happens to it

    def answer_after(self, answer_s: float) -> None:
        """Take so long to answer each question from now on."""
        with self._changed() as cluster:
            cluster["answer_s"] = answer_s

    def refuse(self, job: str, *, for_good: bool) -> None:
        """Take no submission of that job from now on."""
        with self._changed() as cluster:
            cluster["refusals"][job] = for_good

    def take(self, job: str) -> None:
        """Take submissions of that job again."""
        with self._changed() as cluster:
            del cluster["refusals"][job]

    def say_of(self, job: str, state: str, message: str) -> None:
        """Say from now on of the job's submission what it says itself of none."""
        with self._changed() as cluster:
            _current(cluster, job).update(state=state, message=message)

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
        """End everything without a word, and know nothing of it any more; what has not begun was never accepted."""
        with self._changed() as cluster:
            pending = {each["id"] for each in cluster["submissions"].values() if each["state"] == "pending"}
            cluster["accepted"] = [each for each in cluster["accepted"] if each[0] not in pending]
            cluster["submissions"] = {}

    def start(self, job: str) -> None:
        """Have the job's submission run from now on."""
        with self._changed() as cluster:
            _current(cluster, job)["starts_at"] = 0

    def end(self, job: str, state: RunState = "finished", reason: str = "", cause: Cause = "error") -> None:
        """Have the job's submission end now, leaving that state in its record."""
        self.start(job)
        with self._changed() as cluster:
            submission = _current(cluster, job)
            submission.update(state="ended", message="")
            _set_status(submission, state, reason, cause)

    def end_without_a_word(self, job: str, message: str = "") -> None:
        """Have the processes of the job's submission be gone; all that tells is the cluster's message."""
        with self._changed() as cluster:
            _current(cluster, job).update(state="ended", message=message)

    # What came of it

    def known(self) -> set[str]:
        """The submissions that it knows."""
        with self._changed() as cluster:
            return set(cluster["submissions"])

    def accepted(self, job: str | None = None) -> list[str]:
        """The submissions that it ever accepted, of one job or of all, the first first."""
        with self._changed() as cluster:
            return [each for each, name, _ in cluster["accepted"] if job in (None, name)]

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
        time.sleep(self._answer_s())
        with self._changed() as cluster:
            if not cluster["is_reachable"]:
                raise ClusterUnreachableError("the fake cluster does not answer")
            yield cluster

    def _answer_s(self) -> float:
        return float(json.loads(self._file.read_text())["answer_s"])

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
    submissions = cluster["submissions"].values()
    [current] = [each for each in submissions if each["name"] == job and each["state"] != "ended"]
    return current  # type: ignore[no-any-return]


def _go_on(cluster: dict[str, Any]) -> None:
    """Do what the submissions have done since somebody looked. Doing it twice, after a kill half way, is the same."""
    now = time.time()
    for submission in cluster["submissions"].values():
        if submission["state"] == "ended":
            continue
        try:
            if submission["state"] == "pending" and submission["starts_at"] <= now:
                _begin(submission)
            _check_is_there(submission)
            if submission["state"] == "running" and submission["ends_at"] <= now:
                if submission["name"].startswith(UNLUCKY) and submission["attempt"] == 1:
                    _set_status(submission, "failed", "a node was lost", "lost")
                else:
                    _set_status(submission, "finished")
                submission.update(state="ended")
        except RunError:
            submission.update(state="ended", message="exit code 1")
        except StorageError:
            continue  # what runs goes on


def _begin(submission: dict[str, Any]) -> None:
    storage, name, number = Storage(submission["storage"]), submission["name"], submission["attempt"]
    try:
        attempt = Attempt.begin(storage, name, number)
    except StorageError:
        submission.update(state="ended", message="exit code 1")
        return
    if attempt is not None:
        with closing(attempt):
            attempt.set_status("running")
    if attempt is not None or _is_running(storage, name, number):  # it may have begun before a kill half way
        submission.update(state="running")
    else:
        submission.update(state="ended", message="exit code 3")


def _is_running(storage: Storage, name: str, number: int) -> bool:
    view = Reader(storage, name).look()
    return view.attempt == number and view.status.state in ("running", "interrupted")


def _check_is_there(submission: dict[str, Any]) -> None:
    if Storage(submission["storage"]).entry(RunKeys(submission["name"]).document) is None:
        raise RunError("somebody deleted it")


def _set_status(submission: dict[str, Any], state: RunState, reason: str = "", cause: Cause = "error") -> None:
    reader = Reader(Storage(submission["storage"]), submission["name"])
    with closing(Attempt(reader, submission["attempt"])) as attempt:
        attempt.set_status(state, reason, cause=cause)
