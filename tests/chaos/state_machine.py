"""All that can happen to a queue, in any order: store, policy, dispatchers and record over a fake cluster.

`python -m tests.chaos.state_machine --steps 10000 --seed 1` tries so many steps and checks after each one what holds
always, and in the end, when all that was broken is mended, that every job has ended as it should.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import sqlalchemy as sa
import typer.main
from filelock import FileLock
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cli.main import app
from raygen.errors import JobError, RunError, StorageError
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import ACTIVE, ENDED, RETRIED, JobState
from raygen.queue.store import LEASE_S, Store
from raygen.record import reading
from raygen.record.layout import RunKeys
from raygen.record.run import Run
from raygen.storage import Storage
from tests.chaos.chaotic_cluster import ChaoticCluster, FaultyClient, not_answer
from tests.chaos.clock import Clock
from tests.chaos.damage import KINDS, RECOVERABLE, Kind, What, damage
from tests.chaos.invariants import Fate, check_ended_once, check_history, check_queue
from tests.queue.making import CLUSTER, queue_job

CPUS = 4
START_S, RUN_S = 2.0, 40.0
STEPS = 50
"""Steps of one story."""

MOST_JOBS = 8
ROUNDS = 400
"""Looks of both dispatchers, half a minute apart, within which every job must end once nothing happens any more."""

Which = st.sampled_from([0, 1])
Seconds = st.sampled_from([0.5, 3.0, 10.0, 20.0, LEASE_S + 5, 400.0])


# Made once, as that takes longer than the command itself.
raygen = typer.main.get_command(app)


class Killed(BaseException):
    """A dispatcher's process was killed."""


class QueueMachine(RuleBasedStateMachine):
    """A queue with two dispatchers, people who use it, and everything that goes wrong."""

    steps: Counter[str] = Counter()
    """How often each kind of thing has happened, over all stories of this process."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self._exits = ExitStack()
        root = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="raygen-chaos-", dir=root)))
        # What a test of the loss of power would need is of no use here.
        self._exits.enter_context(mock.patch.object(os, "fsync"))
        self.clock = Clock()
        self._exits.enter_context(self.clock.ruling())
        self.runs, self.away = self.folder / "runs", self.folder / "away"
        self.runs.mkdir()
        shutil.copy(template(), self.folder / "queue.sqlite")
        url = sa.URL.create("sqlite", database=str(self.folder / "queue.sqlite"))
        environment = {
            "RAYGEN_DB": url.render_as_string(),
            "RAYGEN_STORAGE": str(self.runs),
            "RAYGEN_STATE": str(self.folder / "state"),
        }
        self._exits.enter_context(mock.patch.dict(os.environ, environment))
        self.storage = Storage(self.runs)
        self.queue = Store(url)
        self._exits.callback(self.queue.engine.dispose)
        self.cluster = ChaoticCluster(self.folder / "cluster", cpus=CPUS, start_s=START_S, run_s=RUN_S)
        self.fates: dict[str, Fate] = {}
        self.ghosts: dict[str, tuple[int, FileLock]] = {}
        self.submitted = 0
        self.is_listed = False
        self.clients = [FaultyClient(self.cluster) for _ in range(2)]
        self.dispatchers = [self._new_dispatcher(which) for which in range(2)]

    def _new_dispatcher(self, which: int) -> Dispatcher:
        return Dispatcher(self.queue, self.clients[which], CLUSTER)

    # People

    @initialize(target=jobs, cpus=st.lists(st.integers(1, CPUS), min_size=2, max_size=4))
    def begin(self, cpus: list[int]) -> object:
        return multiple(*[self._submit(each, 0, 20) for each in cpus])

    @precondition(lambda self: self._is_there() and len(self.fates) < MOST_JOBS)
    @rule(
        target=jobs,
        cpus=st.integers(1, CPUS),
        priority=st.integers(-1, 1),
        retries=st.sampled_from([0, 2, 20, 20]),
    )
    def submit(self, cpus: int, priority: int, retries: int) -> str:
        self._happened("submit")
        return self._submit(cpus, priority, retries)

    @rule(name=jobs)
    def cancel(self, name: str) -> None:
        self._happened("cancel")
        job = self.queue.find(name)
        if job.state in ENDED:
            with pytest.raises(JobError):
                self.queue.cancel(job)
            return
        self.queue.cancel(job)
        self.fates[name].is_unwanted = True

    @rule(name=jobs)
    def retry(self, name: str) -> None:
        self._happened("retry")
        job = self.queue.find(name)
        if job.state not in RETRIED:
            with pytest.raises(JobError):
                self.queue.retry(job)
        elif self._ask_for_more(name, reopens=True):
            self.queue.retry(job)
            self.fates[name].begin_again()

    @rule(name=jobs)
    def extend(self, name: str) -> None:
        self._happened("extend")
        job = self.queue.find(name)
        if job.state is not JobState.SUCCEEDED:
            with pytest.raises(JobError):
                self.queue.extend(job)
        elif self._ask_for_more(name, reopens=False):
            self.queue.extend(job)
            self.fates[name].begin_again()

    @rule(name=jobs, priority=st.integers(-2, 2))
    def set_priority(self, name: str, priority: int) -> None:
        self._happened("priority")
        job = self.queue.find(name)
        if job.state in ENDED:
            with pytest.raises(JobError):
                self.queue.set_priority(job, priority)
        else:
            assert self.queue.set_priority(job, priority).priority == priority

    @precondition(lambda self: self._is_there() and self._ended())
    @rule(name=consumes(jobs))
    def remove(self, name: str) -> None:
        job = self.queue.find(name)
        if job.state not in ENDED:
            with pytest.raises(JobError):
                self.queue.remove(job)
            self.queue.cancel(job)
            self.fates[name].is_unwanted = True
            return
        self._happened("remove")
        Run(self.storage, name).remove()
        self.queue.remove(job)
        del self.fates[name]

    @precondition(lambda self: not self.is_listed)
    @rule()
    def list_jobs(self) -> None:
        self._happened("ls")
        self.is_listed = True
        with redirect_stdout(io.StringIO()) as listed, pytest.raises(SystemExit, match=r"^0$"):
            raygen(["ls"])
        assert all(name in listed.getvalue() for name in self.fates)

    # Dispatchers

    @rule(which=Which, seconds=Seconds)
    def look(self, which: int, seconds: float) -> None:
        self._happened("look")
        self.dispatchers[which].tick()
        self.clock.let_pass(seconds)

    @rule(seconds=Seconds, times=st.integers(1, 3))
    def both_look(self, seconds: float, times: int) -> None:
        self._happened("both look")
        for _ in range(times):
            for dispatcher in self.dispatchers:
                dispatcher.tick()
            self.clock.let_pass(seconds)

    @rule(which=Which, calls=st.integers(0, 12))
    def be_killed_in_a_look(self, which: int, calls: int) -> None:
        self._happened("dispatcher killed")

        def kill() -> None:
            raise Killed

        self._look_with(which, calls, kill)
        self.clients[which].calm()
        self.dispatchers[which] = self._new_dispatcher(which)

    @rule(which=Which, calls=st.integers(0, 12), times=st.integers(1, 3), name=jobs)
    def fall_asleep_in_a_look(self, which: int, calls: int, times: int, name: str) -> None:
        """What was read is old when it goes on: its lease has run out, and the other one and people have gone on."""
        self._happened("dispatcher asleep")

        def sleep() -> None:
            for _ in range(times):
                self.clock.let_pass(LEASE_S + 1)
                self.dispatchers[1 - which].tick()
                self.clock.let_pass(START_S + 1)
                self.dispatchers[1 - which].tick()
            if name in self.fates:
                self.cancel(name)

        self._look_with(which, calls, sleep)

    @rule(which=Which, calls=st.integers(0, 12))
    def get_no_answer_in_a_look(self, which: int, calls: int) -> None:
        self._happened("answer lost")
        self._look_with(which, calls, not_answer)

    @rule(which=Which)
    def leave(self, which: int) -> None:
        self._happened("dispatcher ended")
        self.dispatchers[which].leave()
        self.dispatchers[which] = self._new_dispatcher(which)

    @rule(seconds=Seconds)
    def time_passes(self, seconds: float) -> None:
        self._happened("time")
        self.clock.let_pass(seconds)

    # The cluster

    @rule(is_reachable=st.booleans())
    def be_silent(self, is_reachable: bool) -> None:
        self._happened("cluster answers" if is_reachable else "cluster silent")
        if is_reachable:
            self.cluster.become_reachable()
        else:
            self.cluster.become_unreachable()

    @rule(is_full=st.booleans())
    def be_full(self, is_full: bool) -> None:
        self._happened("cluster full" if is_full else "cluster has room")
        self.cluster.be_full(is_full)

    @rule()
    def lose_the_next_response(self) -> None:
        self._happened("submission's answer lost")
        self.cluster.lose_the_next_response()

    @rule()
    def restart_the_cluster(self) -> None:
        self._happened("cluster restarted")
        self.cluster.restart()
        self._lose([job.name for job in self.queue.list(states=ACTIVE)])

    @rule(name=jobs)
    def kill_a_driver(self, name: str) -> None:
        if self._driver(name):
            self._happened("driver killed")
            self._lose([name])
            self.cluster.end_without_a_word(name, "killed: [/x] \x1b[31m")

    @rule(name=jobs, how=st.sampled_from(["finished", "failed", "lost", "interrupted"]))
    def end_a_driver(self, name: str, how: str) -> None:
        if not self._driver(name) or not self._is_there() or self.fates[name].is_broken:
            return
        self._happened(f"driver {how}")
        if how == "failed":
            self.fates[name].may_fail = True
            self.cluster.end(name, "failed", "the loss is not finite [/bold]")
        elif how == "lost":
            self._lose([name])
            self.cluster.end(name, "failed", "a node was lost", "lost")
        else:
            self._lose([name] if how == "interrupted" else [])
            self.cluster.end(name, "finished" if how == "finished" else "interrupted")

    @rule(name=jobs)
    def forget_a_driver_that_lives(self, name: str) -> None:
        if not (self._is_there() and name not in self.ghosts and (attempt := self._driver(name))):
            return
        self._happened("driver forgotten")
        held = reading.lock(self.storage, RunKeys(name))
        held.acquire(timeout=0)
        self.ghosts[name] = attempt, held
        self._lose([name])
        self.cluster.lose_track_of(name)

    @rule(name=jobs)
    def end_a_forgotten_driver(self, name: str) -> None:
        if name in self.ghosts:
            self._happened("forgotten driver killed")
            self._lay(name)

    # The storage

    @rule(is_there=st.booleans())
    def lose_the_storage(self, is_there: bool) -> None:
        self._happened("storage back" if is_there else "storage away")
        if self._is_there() == is_there:
            return
        if is_there:
            self._mend_storage()
            return
        # What is being started finds no storage: that attempt is lost.
        self._lose([job.name for job in self.queue.list(states=ACTIVE)])
        self.runs.rename(self.away)

    @rule(name=jobs, what=st.sampled_from(["run", "attempt", "status"]), kind=st.sampled_from(list(KINDS)))
    def damage_a_document(self, name: str, what: What, kind: Kind) -> None:
        if name not in self.fates or not self._is_there():
            return
        fate, job = self.fates[name], self.queue.find(name)
        if damage(self.runs, name, job.attempt, what, kind):
            self._happened(f"{what} document damaged")
            self._lose([name])
            if (what, kind) not in RECOVERABLE:
                fate.is_broken = fate.may_fail = True

    # What holds

    @invariant()
    def holds_always(self) -> None:
        jobs = check_queue(self.queue, cpus=CPUS)
        check_history(self.queue)
        assert {job.name for job in jobs} == set(self.fates), "a job was lost"
        for job in jobs:
            if job.state in ENDED:
                assert job.state in self.fates[job.name].ends, f"{job.name} {job.state}: {job.reason}"
        running = self.cluster.drivers()
        for name, attempts in running.items():
            assert len(attempts) == 1, f"{name} is run by attempts {attempts} at a time"
        for name, (attempt, _) in self.ghosts.items():
            assert max(running.get(name, [attempt])) <= attempt, f"attempt {attempt} at {name} runs still"

    def teardown(self) -> None:
        """Mend all that is broken, and see every job to its end."""
        with self._exits:
            if sys.exc_info()[0] is None:
                self._end()

    def _end(self) -> None:
        self.cluster.become_reachable()
        self.cluster.be_full(False)
        self._mend_storage()
        for name in list(self.ghosts):
            if not self.fates[name].is_unwanted:
                self._lay(name)
        for _ in range(ROUNDS):
            if self.queue.is_idle(CLUSTER):
                break
            for dispatcher in self.dispatchers:
                dispatcher.tick()
            self.clock.let_pass(30)
            # Who was asked to stop hears it by the record alone.
            for name, (attempt, _) in list(self.ghosts.items()):
                if self.storage.entry(RunKeys(name).attempt(attempt).stop) is not None:
                    self._lay(name)
            self.holds_always()
        # What runs first: the others may wait for its devices.
        for job in sorted(self.queue.list(), key=lambda job: job.state not in ACTIVE):
            check_ended_once(self.queue, job, requeued=self.fates[job.name].requeued)

    # Helpers

    def _happened(self, what: str) -> None:
        self.is_listed = False
        self.steps[what] += 1

    def _submit(self, cpus: int, priority: int, retries: int) -> str:
        self.submitted += 1
        name = f"job-{self.submitted}"
        queue_job(self.queue, self.runs, name, cpus_each=cpus, priority=priority, retries=retries)
        self.fates[name] = Fate(retries)
        return name

    def _ask_for_more(self, name: str, *, reopens: bool) -> bool:
        """Write down a request as the site does; False if the run cannot be asked."""
        try:
            Run(self.storage, name).request(reopens=reopens)
        except StorageError:
            assert not self._is_there()
            return False
        except RunError:
            # A storage in a folder that is not there is an empty one to those who only read.
            assert self.fates[name].is_broken or not self._is_there()
            return False
        return True

    def _look_with(self, which: int, calls: int, event: Callable[[], None]) -> None:
        self.clients[which].interrupt(calls, event)
        try:
            self.dispatchers[which].tick()
        except Killed:
            pass
        finally:
            self.clients[which].calm()

    def _driver(self, name: str) -> int | None:
        """The attempt whose driver the cluster runs."""
        attempts = self.cluster.drivers().get(name)
        return attempts[0] if attempts else None

    def _lose(self, names: list[str]) -> None:
        for name in names:
            if name in self.fates:
                self.fates[name].losses += 1

    def _lay(self, name: str) -> None:
        """End a forgotten driver."""
        self.ghosts.pop(name)[1].release()

    def _is_there(self) -> bool:
        return not self.away.exists()

    def _mend_storage(self) -> None:
        if self.away.exists():
            # Somebody may have written to the place where it is mounted.
            shutil.rmtree(self.runs, ignore_errors=True)
            self.away.rename(self.runs)

    def _ended(self) -> bool:
        return any(job.state in ENDED for job in self.queue.list())


_template: list[Path] = []


def template() -> Path:
    """An empty queue, made once: its migrations take longer than a story."""
    if not _template:
        path = Path(tempfile.mkdtemp(prefix="raygen-chaos-")) / "queue.sqlite"
        Store(sa.URL.create("sqlite", database=str(path))).engine.dispose()
        _template.append(path)
    return _template[0]


def settings_for(stories: int, *, shrinks: bool = False) -> settings:
    """So many stories, each of STEPS steps."""
    return settings(
        max_examples=stories,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, *([Phase.shrink] if shrinks else [])],
        suppress_health_check=list(HealthCheck),
    )


def tell_stories(steps: int, number: int, *, shrinks: bool = False) -> int:
    """Try so many steps, from a seed; returns how many were tried. Raises what a story ended with."""
    before = QueueMachine.steps.total()
    for more in range(sys.maxsize):
        tried = QueueMachine.steps.total() - before
        if tried >= steps:
            return tried
        seeded = seed(number + more)(type("Story", (QueueMachine,), {}))
        stories = max((steps - tried) // STEPS, 1)
        run_state_machine_as_test(seeded, settings=settings_for(stories, shrinks=shrinks))
    raise AssertionError("unreachable")


def main() -> None:
    """Try as many steps as asked for, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--shrink", action="store_true", help="look for the shortest story that fails")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    logging.disable(logging.ERROR)  # thousands of lines about faults that were made on purpose
    began_at = time.perf_counter()
    try:
        tried = tell_stories(asked.steps, asked.seed, shrinks=asked.shrink)
    finally:
        counts = ", ".join(f"{what} {number}" for what, number in QueueMachine.steps.most_common())
        print(f"{counts}\n{time.perf_counter() - began_at:.0f} s", flush=True)
    print(f"{tried} steps, and all held")


if __name__ == "__main__":
    main()
