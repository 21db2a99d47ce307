"""What people ask of jobs in a queue: to wait for, hold, cancel and remove them, one or many, their own or others'."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

import raygen
from cli.main import app
from raygen import machine, patience, selection
from raygen.capacity import Capacity
from raygen.errors import JobError, PartlyDoneError, QueueError, SpecError, StorageError
from raygen.patience import Patience
from raygen.plan import Plan
from raygen.queue import schema
from raygen.queue.job import Job, JobState, Request
from raygen.queue.store import Store
from raygen.record.layout import RUN_DOCUMENT, RunKeys
from raygen.record.reading import lock
from raygen.record.run import Run
from raygen.site import Site
from raygen.spec import TrainSpec
from raygen.storage import Storage
from tests.searches import begin

DAY_S = 86_400
PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)


class Queue:
    """A storage with its queue, without a cluster, and what is typed for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = Storage(folder)
        self.store = Store.open(self.storage)
        self._dispatcher: int | None = None

    def add(self, name: str, state: JobState = JobState.QUEUED, *, value: float | None = None, **fields: Any) -> Job:
        """A job in that state, with a run; an ended one of `days` ago."""
        days, settings = fields.pop("days", 0), fields.pop("settings", {})
        direction = fields.pop("direction", "min")
        Run.create(self.storage, "train", TrainSpec.create("ae", settings), PLAN, direction, name=name)
        values = {
            **{"kind": "train", "model": "ae", "data": "digits", "objective": "val_mse", "user": machine.user()},
            **{"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1, "cluster": "here"},
            **fields,
        }
        job = self.store.submit(Request(name=name, storage=self.storage.url, **values))
        if state is not JobState.QUEUED:
            job = self._brought_to(job, state, value)
        with self.store.engine.begin() as connection:
            ended = schema.jobs.c.ended_at - days * DAY_S
            connection.execute(sa.update(schema.jobs).where(schema.jobs.c.id == job.id).values(ended_at=ended))
        return self.store.get(job.id)

    def _brought_to(self, job: Job, state: JobState, value: float | None) -> Job:
        if self._dispatcher is None:
            self._dispatcher = self.store.register("here", host="here", pid=1)
            self.store.saw("here", Capacity.of_machine(gpus=0, cpus=1000, where="here"))
        # One that no other job is before.
        with self.store.engine.begin() as connection:
            first = sa.update(schema.jobs).where(schema.jobs.c.id == job.id)
            connection.execute(first.values(priority=1_000_000))
        claimed = self.store.claim(self._dispatcher)
        assert claimed is not None
        assert claimed.id == job.id
        with self.store.engine.begin() as connection:
            connection.execute(sa.update(schema.jobs).where(schema.jobs.c.id == job.id).values(priority=job.priority))
        if state is JobState.STARTING:
            return claimed
        running = self.store.move(self.store.get(job.id), JobState.RUNNING)
        return running if state is JobState.RUNNING else self.store.move(running, state, best_value=value)

    def type(self, command: str, answer: str | None = None) -> Result:
        """What a command prints and ends with, with a pipe unless an answer is typed."""
        return CliRunner(env={"RAYGEN_STORAGE": str(self.folder), "RAY_ADDRESS": ""}).invoke(
            app, command.split(), input=answer
        )

    def states(self) -> dict[str, str]:
        return {job.name: str(job.state) for job in self.store.list()}

    def names(self) -> list[str]:
        """Those that the queue and the storage both have; they never differ."""
        assert {job.name for job in self.store.list()} == set(self.storage.children()) - {"queue.sqlite"} - {
            "queue.sqlite-shm",
            "queue.sqlite-wal",
        }
        return sorted(self.states())


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "runs")


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is a terminal, so that commands ask."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")


def refused(result: Result) -> str:
    """The one line of a command that was refused."""
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    return line


# wait


def away_for(storage: Path, seconds: float) -> threading.Thread:
    """A storage that goes away now and comes back later, as one does that is mounted again."""
    storage.rename(storage.with_name("elsewhere"))
    comes = threading.Timer(seconds, lambda: storage.with_name("elsewhere").rename(storage))
    comes.start()
    return comes


@pytest.mark.parametrize("command", ["wait job", "watch job", "logs -f job", "wait job --for succeeded"])
def test_whoever_waits_waits_through_an_outage(queue: Queue, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(patience, "ASK_AGAIN_EVERY_S", 0.05)
    queue.storage.mark()
    job = queue.add("job", JobState.RUNNING)
    came: list[threading.Thread] = []

    def go_away_once(seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        sleep(min(seconds, 0.05))
        if not came:
            queue.store.move(queue.store.get(job.id), JobState.SUCCEEDED)
            queue.store.engine.dispose()
            came.append(away_for(queue.folder, 1.0))

    monkeypatch.setattr(time, "sleep", go_away_once)
    result = queue.type(command)
    came[0].join()
    assert result.exit_code == 0, result.output
    assert result.stderr.count("looking again until that is over") <= 2


def test_a_time_to_wait_counts_in_an_outage(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ASK_AGAIN_EVERY_S", 0.05)
    job = queue.add("job")
    asked = Patience(queue.storage, lambda line: None, until=time.monotonic() + 0.2)

    def question() -> Job:
        raise QueueError("no route to host")

    with pytest.raises(QueueError, match="no route"):
        asked.ask(question)
    assert asked.ask(lambda: queue.store.get(job.id)) == job


def test_an_answer_that_is_no_outage_is_heard_at_once(queue: Queue) -> None:
    queue.storage.mark()
    job = queue.add("job", JobState.FAILED)
    queue.store.remove(job)
    with pytest.raises(JobError, match="was removed"):
        Patience(queue.storage, lambda line: None).ask(lambda: queue.store.get(job.id))


def test_a_wait_that_ends_too_early_or_too_late_is_no_bad_input(queue: Queue) -> None:
    queue.add("waits")
    queue.add("has-ended", JobState.SUCCEEDED)
    for command in ("wait waits --timeout 0", "wait has-ended --for failed"):
        assert queue.type(command).exit_code == 1


def test_a_dry_run_of_a_resumption_queues_nothing(queue: Queue) -> None:
    queue.add("job", JobState.FAILED, settings={"training.epochs": 7})
    result = queue.type("train --resume job --dry-run")
    assert json.loads(result.stdout)["spec"]["training"]["epochs"] == 7
    assert queue.states() == {"job": "failed"}


@pytest.mark.parametrize(
    "option", ["--name other", "--priority 0", "--retries 3", "--node-timeout 9", "--time-limit 1h"]
)
def test_what_only_a_new_job_takes_is_refused_beside_resume(queue: Queue, option: str) -> None:
    queue.add("job", JobState.FAILED)
    assert f"leave out {option.split()[0]}" in refused(queue.type(f"train --resume job {option}"))
    assert queue.states() == {"job": "failed"}


# ls and logs


def test_lists_say_whose_jobs_are_unless_all_are_mine(queue: Queue) -> None:
    queue.add("mine")
    assert "user" not in queue.type("ls").stdout
    queue.add("his", user="bob")
    assert [line.split()[:2] for line in queue.type("ls").stdout.splitlines()[1:]] == [
        ["his", "bob"],
        ["mine", machine.user()],
    ]


def test_a_list_of_nothing_does_not_say_that_there_are_no_jobs(queue: Queue) -> None:
    queue.add("job")
    assert queue.type("ls --state failed").stderr.startswith("no such jobs in ")
    assert "there is no state 'nope'; type queued, " in refused(queue.type("ls --state nope"))


def test_lines_with_times_of_others_are_shown(queue: Queue) -> None:
    job = queue.add("job", JobState.SUCCEEDED)
    log = queue.folder / RunKeys("job").attempt(1).log(1)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("2026-01-01T00:00:00 a library's own\n2020-01-01T00:00:00+00:00 old\n")
    assert job.name == "job"
    assert queue.type("logs job --since 1h").stdout == "2026-01-01T00:00:00 a library's own\n"


# more of wait


def test_a_job_that_was_extended_is_waited_for_again(queue: Queue) -> None:
    job = queue.add("search", JobState.SUCCEEDED)
    assert queue.type("wait search --for succeeded --timeout 0").exit_code == 0
    queue.store.extend(job)
    result = queue.type("wait search --for succeeded --timeout 0")
    assert (result.exit_code, "search is queued after 0 s" in result.stderr) == (1, True)
    assert queue.type("wait search --for running --timeout 0").exit_code == 1
    assert queue.type("wait search --for queued --timeout 0").exit_code == 0


def test_a_job_that_was_tried_again_has_not_failed_yet(queue: Queue) -> None:
    job = queue.add("training", JobState.FAILED)
    assert queue.type("wait training --for failed --timeout 0").exit_code == 0
    queue.store.retry(job)
    assert queue.type("wait training --for failed --timeout 0").exit_code == 1


def test_what_a_job_went_through_since_it_was_queued_counts(queue: Queue) -> None:
    queue.add("training", JobState.SUCCEEDED)
    assert queue.type("wait training --for running --timeout 0").exit_code == 0
    never = queue.type("wait training --for recovering --timeout 0")
    assert "ended as succeeded and was not recovering since it was queued" in never.stderr


# Whole names


CHANGING = ["rm {} --yes", "cancel {}", "priority {} 3", "hold {}", "release {}", "retry {}", "train --resume {}"]


@pytest.mark.parametrize("command", CHANGING)
def test_what_changes_a_job_takes_its_whole_name(queue: Queue, command: str) -> None:
    queue.add("c-other", JobState.FAILED if command.split()[0] in ("rm", "retry", "train") else JobState.QUEUED)
    before = queue.store.find("c-other")
    line = refused(queue.type(command.format("c")))
    assert "there is no job 'c'" in line
    assert "c-other" in line
    assert queue.store.find("c-other") == before
    assert queue.names() == ["c-other"]


@pytest.mark.parametrize("command", ["show {}", "logs {}", "wait {} --for queued"])
def test_what_looks_takes_the_beginning_of_a_name(queue: Queue, command: str) -> None:
    queue.add("c-other", JobState.CANCELLED)
    assert queue.type(command.format("c")).exit_code == 0


@pytest.mark.parametrize(
    ("command", "wrong", "why"),
    [
        ("rm good {} --yes", "running", "is running; `raygen cancel running` ends it first"),
        ("rm good {} --yes", "nothing", "there is no job 'nothing'"),
        ("cancel queued {}", "good", "good has ended already: succeeded"),
        ("cancel queued {}", "nothing", "there is no job 'nothing'"),
        ("hold queued {}", "running", "running is running; only a waiting job can be held"),
        ("release queued {}", "good", "good has ended already: succeeded"),
    ],
)
def test_all_are_checked_before_the_first_is_touched(queue: Queue, command: str, wrong: str, why: str) -> None:
    queue.add("good", JobState.SUCCEEDED)
    queue.add("running", JobState.RUNNING)
    queue.add("queued")
    before = queue.store.list()
    assert why in refused(queue.type(command.format(wrong)))
    assert queue.store.list() == before
    assert queue.names() == ["good", "queued", "running"]


def test_a_name_that_is_typed_twice_counts_once(queue: Queue) -> None:
    queue.add("good", JobState.SUCCEEDED)
    result = queue.type("rm good good --yes")
    assert (result.exit_code, result.stderr.count("good removed")) == (0, 1)


# Others' jobs


@pytest.mark.parametrize("command", CHANGING)
def test_another_users_job_needs_force(queue: Queue, command: str) -> None:
    state = JobState.FAILED if command.split()[0] in ("rm", "retry", "train") else JobState.QUEUED
    queue.add("theirs", state, user="bob")
    before = queue.store.list()
    assert "theirs is bob's job; --force" in refused(queue.type(command.format("theirs")))
    assert queue.store.list() == before
    if "--resume" not in command:  # which would need a cluster
        assert queue.type(f"{command.format('theirs')} --force").exit_code == 0


def test_no_filter_reaches_another_users_job_unless_asked(queue: Queue) -> None:
    for name, user in (("mine", machine.user()), ("theirs", "bob"), ("others", "eve")):
        queue.add(name, user=user)
    line = refused(queue.type("cancel --state queued --yes"))
    assert "others is eve's job, and 1 more of these are others'" in line
    assert "--mine leaves them out" in line
    assert set(queue.states().values()) == {"queued"}
    assert queue.type("cancel --state queued --mine --yes").exit_code == 0
    assert queue.states() == {"mine": "cancelled", "theirs": "queued", "others": "queued"}
    assert queue.type("cancel --state queued --force --yes").exit_code == 0
    assert set(queue.states().values()) == {"cancelled"}


# cancel


def test_cancel_by_state_asks_and_says_how_many(queue: Queue, at_a_terminal: None) -> None:
    queue.add("running", JobState.RUNNING)
    for number in range(3):
        queue.add(f"queued-{number}")
    declined = queue.type("cancel --state queued", "n\n")
    assert (declined.exit_code, "Cancel 3 jobs?" in declined.stderr) == (130, True)
    assert "queued-1" in declined.stderr
    assert "cancelled" not in queue.states().values()
    agreed = queue.type("cancel --state queued", "y\n")
    assert agreed.exit_code == 0, agreed.output
    assert [queue.states()[f"queued-{number}"] for number in range(3)] == ["cancelled"] * 3
    assert queue.states()["running"] == "running"


def test_cancel_mine_takes_all_of_mine_that_have_not_ended(queue: Queue) -> None:
    queue.add("ended", JobState.SUCCEEDED)
    queue.add("theirs", user="bob")
    queue.add("running", JobState.RUNNING)
    queue.add("queued")
    line = queue.type("cancel --mine").stderr.splitlines()[-1]
    assert "this would cancel 2 jobs; type --yes as well" in line
    assert queue.type("cancel --mine --yes").exit_code == 0
    assert queue.states() == {"ended": "succeeded", "theirs": "queued", "running": "running", "queued": "cancelled"}
    assert queue.store.find("running").cancelled_at is not None


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("cancel", "name jobs, or type --mine or --state"),
        ("cancel a --mine", "leave out a"),
        ("cancel --state succeeded", "--state succeeded: only jobs that are queued"),
        ("cancel --state done", "type queued, starting"),
        ("rm", "name jobs, or type --mine, --state or --older-than"),
        ("rm a --older-than 3d", "leave out a"),
        ("rm a --keep-best", "leave out a"),
        ("rm --keep-best", "name jobs, or type"),
        ("rm --older-than soon", "--older-than: 'soon' is no length of time"),
        ("rm --mine --state=", "--state : there is no state ''"),
        ("rm --state queued", "--state queued: only jobs that are succeeded"),
        ("hold", "name jobs, or type --all"),
        ("hold a --all", "leave out a"),
        ("release", "name jobs, or type --all"),
        ("train vae --time-limit 2x", "--time-limit: '2x' is no length of time"),
        ("train vae --time-limit 0s", "a time limit of 0 s leaves no time to run"),
        ("train --resume a --time-limit 2h", "leave out --time-limit"),
        ("tune --extend a --time-limit 2h", "leave out --time-limit"),
        ("train vae --force", "--force goes with --resume"),
        ("tune vae --force", "--force goes with --resume and --extend"),
        ("logs a --since soon", "--since: 'soon' is no length of time"),
    ],
)
def test_what_is_not_meant_is_refused_in_one_line(queue: Queue, command: str, why: str) -> None:
    queue.add("a", JobState.FAILED)
    assert why in refused(queue.type(command))
    assert queue.names() == ["a"]


def test_nothing_to_cancel_is_no_error(queue: Queue) -> None:
    result = queue.type("cancel --mine --yes")
    assert (result.exit_code, result.stderr.strip()) == (0, "no job is meant by that")


# rm


def test_rm_asks_with_names_and_sizes(queue: Queue, at_a_terminal: None) -> None:
    for name in ("first", "second"):
        queue.add(name, JobState.SUCCEEDED)
        queue.storage.put(f"{name}/more", b"x" * 2_000_000)
    declined = queue.type("rm first second", "n\n")
    assert declined.exit_code == 130
    assert "Remove 2 runs with all their results, 4.0 MB?" in declined.stderr
    assert queue.names() == ["first", "second"]
    assert queue.type("rm first second", "y\n").exit_code == 0
    assert queue.names() == []


def test_one_run_is_asked_about_as_one(queue: Queue, at_a_terminal: None) -> None:
    queue.add("only", JobState.SUCCEEDED)
    assert "Remove 1 run with all its results" in queue.type("rm only", "n\n").stderr
    queue.add("waiting")
    assert "Cancel 1 job?" in queue.type("cancel --mine", "n\n").stderr


def test_rm_by_age_leaves_what_is_younger_or_has_not_ended(queue: Queue) -> None:
    queue.add("running", JobState.RUNNING)
    queue.add("young", JobState.SUCCEEDED, days=29)
    queue.add("old", JobState.SUCCEEDED, days=31)
    queue.add("old-failed", JobState.FAILED, days=40)
    piped = queue.type("rm --older-than 30d")
    assert piped.exit_code == 2
    assert "this would remove 2 runs with all their results" in piped.stderr.splitlines()[-1]
    assert "old-failed" in piped.stderr, "it says which"
    assert queue.type("rm --older-than 30d --state failed --yes").exit_code == 0
    assert queue.names() == ["old", "running", "young"]
    assert queue.type("rm --older-than 30d --yes").exit_code == 0
    assert queue.names() == ["running", "young"]


def test_rm_keeps_the_best_of_each_kind(queue: Queue) -> None:
    """Of each model, data with their options, and objective, among all that have ended, young ones too."""
    old: dict[str, Any] = {"state": JobState.SUCCEEDED, "days": 40}
    queue.add("best", value=0.1, **old)
    queue.add("worse", value=0.2, **old)
    queue.add("without", **old)
    queue.add("zeros", value=0.3, settings={"data.normal_class": 0}, **old)
    queue.add("other-data", value=0.9, data="mnist", **old)
    queue.add("old-vae", value=0.5, model="vae", **old)
    queue.add("new-vae", JobState.SUCCEEDED, value=0.4, model="vae", days=1)
    queue.add("highest", value=0.9, objective="val_ssim", direction="max", **old)
    queue.add("lowest", value=0.1, objective="val_ssim", direction="max", **old)
    assert queue.type("rm --older-than 30d --keep-best --yes").exit_code == 0
    assert queue.names() == ["best", "highest", "new-vae", "other-data", "zeros"]


def test_rm_keeps_what_it_cannot_compare_and_says_so(queue: Queue) -> None:
    queue.add("good", JobState.SUCCEEDED, value=0.1)
    queue.add("better", JobState.SUCCEEDED, value=0.05)
    (queue.folder / "better" / RUN_DOCUMENT).write_text('{"format": 99}')
    result = queue.type("rm --older-than 0s --keep-best --yes")
    assert "better is kept, as it may be the best of its kind: " in result.stderr
    assert (result.exit_code, queue.names()) == (0, ["better", "good"])


def test_rm_leaves_alone_what_went_on_while_it_asked(queue: Queue) -> None:
    job = queue.add("job", JobState.FAILED)
    site = Site(queue.folder)
    [meant] = selection.removable_alike(site, states=[JobState.FAILED])
    queue.store.retry(job)
    queue.add("other")
    queue._brought_to(queue.store.get(job.id), JobState.SUCCEEDED, 0.01)
    with pytest.raises(JobError, match="job was failed and is succeeded by now; it was left alone"):
        selection.remove(site, meant)
    assert queue.names() == ["job", "other"]


def test_what_everybody_has_best_is_kept_of_each(queue: Queue) -> None:
    queue.add("mine", JobState.SUCCEEDED, value=0.1, days=9)
    queue.add("theirs", JobState.SUCCEEDED, value=0.2, days=9, user="bob")
    queue.add("theirs-worse", JobState.SUCCEEDED, value=0.3, days=9, user="bob")
    assert queue.type("rm --older-than 1d --keep-best --force --yes").exit_code == 0
    assert queue.names() == ["mine", "theirs"]


def test_a_run_without_a_job_is_removed_by_its_whole_name(queue: Queue, tmp_path: Path) -> None:
    lost = Queue(tmp_path / "other")
    Run.create(lost.storage, "train", TrainSpec.create("ae", {}), PLAN, "min", name="orphan-other")
    assert "there is no job 'orphan'" in refused(lost.type("rm orphan --yes"))
    assert (tmp_path / "other" / "orphan-other").exists()
    assert "orphan-other removed" in lost.type("rm orphan-other --yes").stderr
    assert not (tmp_path / "other" / "orphan-other").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can have a folder be another user's")
def test_another_users_run_without_a_job_needs_force(queue: Queue) -> None:
    Run.create(queue.storage, "train", TrainSpec.create("ae", {}), PLAN, "min", name="orphan")
    os.chown(queue.folder / "orphan", 12345, 12345)
    assert "orphan is 12345's run; --force" in refused(queue.type("rm orphan --yes"))
    assert (queue.folder / "orphan").exists()
    assert queue.type("rm orphan --yes --force").exit_code == 0
    assert not (queue.folder / "orphan").exists()


def test_a_run_that_works_for_another_queue_needs_force(queue: Queue) -> None:
    begin(Run.create(queue.storage, "train", TrainSpec.create("ae", {}), PLAN, "min", name="orphan"))
    with lock(queue.storage, RunKeys("orphan")):
        assert "orphan seems to be at work for another queue; --force" in refused(queue.type("rm orphan --yes"))
    assert queue.type("rm orphan --yes").exit_code == 0, "its process has ended"


def test_what_cannot_be_removed_does_not_keep_the_others(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "stuck", "third"):
        queue.add(name, JobState.SUCCEEDED)
    remove = Run.remove

    def fail(run: Run) -> None:
        if run.name == "stuck":
            raise StorageError("cannot remove stuck: Permission denied")
        remove(run)

    monkeypatch.setattr(Run, "remove", fail)
    result = queue.type("rm --mine --yes")
    assert (result.exit_code, "cannot remove stuck" in result.stderr) == (1, True)
    assert queue.names() == ["stuck"]


# hold and release


def test_jobs_are_held_and_released_by_name(queue: Queue) -> None:
    queue.add("first")
    queue.add("second")
    assert queue.type("hold first second").exit_code == 0
    assert queue.store.find("first").held_at is not None
    assert queue.type("hold first").exit_code == 0, "asked for twice it is held once"
    released = queue.type("release first")
    assert (released.exit_code, "first may start" in released.stderr) == (0, True)
    assert [queue.store.find(name).held_at is None for name in ("first", "second")] == [True, False]
    [held, free] = json.loads(queue.type("ls -o json").stdout)
    assert (held["held"], free["held"]) == (True, False)
    assert "first was not held" in queue.type("release first").stderr


def test_the_whole_queue_is_held_before_maintenance(queue: Queue) -> None:
    held = queue.type("hold --all")
    assert held.exit_code == 0, held.output
    assert "nothing starts" in held.stderr
    status = json.loads(queue.type("status -o json").stdout)
    assert status["held_at"] is not None
    assert "held since" in queue.type("status").stdout
    queue.add("alone", cluster=status_cluster(queue))
    assert queue.type("hold alone").exit_code == 0
    released = queue.type("release --all")
    assert released.exit_code == 0
    assert "1 job is still held by name: alone" in released.stderr
    assert json.loads(queue.type("status -o json").stdout)["held_at"] is None


def test_a_queue_that_others_wait_in_is_held_with_force_alone(queue: Queue) -> None:
    queue.add("theirs", user="bob", cluster=status_cluster(queue))
    assert "theirs is bob's job; --force" in refused(queue.type("hold --all"))
    assert queue.type("hold --all --force").exit_code == 0


def test_a_queue_in_which_others_jobs_run_is_held_with_force_alone(queue: Queue) -> None:
    """Lost, they would wait again."""
    cluster = status_cluster(queue)
    dispatcher = queue.store.register(cluster, host="here", pid=1)
    queue.store.saw(cluster, Capacity.of_machine(gpus=0, cpus=4, where="here"))
    queue.add("theirs", user="bob", cluster=cluster)
    assert queue.store.claim(dispatcher) is not None
    assert "theirs is bob's job; --force" in refused(queue.type("hold --all"))


@pytest.mark.parametrize("command", ["hold --all", "release --all"])
def test_a_queue_that_another_holds_stays_so_without_force(queue: Queue, command: str) -> None:
    cluster = status_cluster(queue)
    queue.store.hold_cluster(cluster, "bob")
    assert "bob holds the queue; --force" in refused(queue.type(command))
    assert "by bob: nothing starts until `raygen release --all`" in " ".join(queue.type("status").stdout.split())
    assert queue.type(f"{command} --force").exit_code == 0
    assert queue.store.cluster(cluster).held_by == (machine.user() if "hold" in command else None)


def test_what_is_no_queue_is_not_held_and_not_made(tmp_path: Path) -> None:
    """The folder of a disk that is not mounted is empty."""
    empty = CliRunner(env={"RAYGEN_STORAGE": str(tmp_path), "RAY_ADDRESS": ""})
    for command in ("hold", "release"):
        line = refused(empty.invoke(app, [command, "--all"]))
        assert f"there is no queue to {command} in {tmp_path}; is its disk mounted?" in line
    assert list(tmp_path.iterdir()) == []


def test_what_to_type_for_another_machines_cluster_names_it(queue: Queue) -> None:
    address = "http://127.0.0.1:1"
    queue.add("theirs", cluster=address)
    assert f"until `raygen release --all --address {address}`" in queue.type(f"hold --all --address {address}").stderr
    shown = " ".join(queue.type(f"status --address {address}").stdout.split())
    assert f"nothing starts until `raygen release --all --address {address}`" in shown
    assert f"none; `raygen dispatch --address {address}` starts one" in shown
    assert f"; `raygen release --all --address {address}` lets it go on" in queue.type("ls").stdout


def status_cluster(queue: Queue) -> str:
    """What the queue calls this machine's own cluster."""
    from raygen.site import Site

    return Site(queue.folder).service.cluster


# Time limits


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_dry_run_tells_the_time_limit(queue: Queue, command: str) -> None:
    result = queue.type(f"{command} vae --time-limit 1h30m --dry-run")
    assert result.exit_code == 0, result.output
    assert "ends with a checkpoint after 1 h 30 min" in result.stderr
    assert json.loads(result.stdout)["time_limit_s"] == 5400


@pytest.mark.parametrize("time", ["90", "10m", "2h"])
def test_a_node_timeout_is_typed_as_other_lengths_of_time(queue: Queue, time: str) -> None:
    result = queue.type(f"train vae --node-timeout {time} --dry-run")
    assert result.exit_code == 0, result.output


def test_lists_tell_what_is_left_of_a_time_limit(queue: Queue) -> None:
    queue.add("waiting", time_limit_s=7200)
    queue.add("running", JobState.RUNNING, time_limit_s=7200)
    earlier(queue, "running", started_at=-600, ran_s=1200)
    listed = queue.type("ls").stdout
    assert "running: 1 h 30 min left" in listed
    assert "time limit: 2 h, 1 h 30 min left" in queue.type("show running").stderr
    assert "time limit: 2 h\n" in queue.type("show waiting").stderr
    shown: Sequence[dict[str, Any]] = json.loads(queue.type("ls -o json").stdout)
    assert [job["time_limit_s"] for job in shown] == [7200, 7200]


def test_a_job_that_was_ended_for_its_time_limit_says_so(queue: Queue) -> None:
    job = queue.store.get(queue.add("long", JobState.RUNNING, time_limit_s=7200).id)
    queue.store.move(job, JobState.CANCELLED, reason="reached its time limit of 2 h")
    assert "cancelled: reached its time limit of 2 h" in queue.type("ls").stdout
    waited = queue.type("wait long")
    assert (waited.exit_code, "long was cancelled: reached its time limit" in waited.stderr) == (130, True)


def earlier(queue: Queue, name: str, *, started_at: float, ran_s: float) -> None:
    """Have a job's attempt begin so many seconds from now, after others that ran so long."""
    job = queue.store.find(name)
    with queue.store.engine.begin() as connection:
        now = connection.exec_driver_sql("SELECT (julianday('now') - 2440587.5) * 86400.0").scalar_one()
        changed = sa.update(schema.jobs).where(schema.jobs.c.id == job.id)
        connection.execute(changed.values(started_at=now + started_at + 1, ran_s=ran_s))


# From Python


def test_python_does_what_the_commands_do(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_STORAGE", str(queue.folder))
    queue.add("first")
    queue.add("second")
    queue.add("theirs", user="bob")
    assert [job.name for job in raygen.jobs(mine=True, states=["queued"])] == ["second", "first"]
    with pytest.raises(JobError, match=r"there is no job 'f'.* first"):
        raygen.cancel("first", "f")
    with pytest.raises(JobError, match="theirs is bob's job"):
        raygen.cancel(states=["queued"])
    assert raygen.hold("first") == ["first"]
    assert queue.store.find("first").held_at is not None
    assert raygen.release("first") == ["first"]
    assert raygen.cancel("first", "theirs", force=True) == ["first", "theirs"]
    assert raygen.retry("first") == ["first"]
    assert raygen.cancel(mine=True) == ["second", "first"]
    assert raygen.remove(older_than_s=DAY_S) == []
    with pytest.raises(SpecError, match="leave out first"):
        raygen.remove("first", mine=True)
    assert raygen.remove(mine=True) == ["second", "first"]
    assert queue.names() == ["theirs"]


def test_python_does_it_to_the_others_if_it_fails_for_one(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_STORAGE", str(queue.folder))
    for name in ("first", "stuck", "third"):
        queue.add(name, JobState.SUCCEEDED)
    remove = Run.remove

    def fail(run: Run) -> None:
        if run.name == "stuck":
            raise StorageError("cannot remove stuck: Permission denied")
        remove(run)

    monkeypatch.setattr(Run, "remove", fail)
    with pytest.raises(
        PartlyDoneError, match=r"^cannot remove stuck: Permission denied; done: third, first$"
    ) as caught:
        raygen.remove(mine=True)
    assert (caught.value.done, [type(each) for each in caught.value.failures]) == (["third", "first"], [StorageError])
    assert queue.names() == ["stuck"]
    with pytest.raises(StorageError, match="cannot remove stuck"):
        raygen.remove("stuck")


def test_python_takes_no_age_for_another(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_STORAGE", str(queue.folder))
    queue.add("failed", JobState.FAILED)
    for wrong in (-5.0, float("nan"), float("inf")):
        with pytest.raises(SpecError, match="s is no age; give 0 s or more"):
            raygen.remove(older_than_s=wrong, keep_best=True)
    assert queue.names() == ["failed"]
    assert raygen.remove(older_than_s=0) == ["failed"]


@pytest.mark.parametrize("change", [raygen.cancel, raygen.hold, raygen.release, raygen.retry, raygen.remove])
def test_python_takes_names_as_texts(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, change: Callable[..., list[str]]
) -> None:
    monkeypatch.setenv("RAYGEN_STORAGE", str(queue.folder))
    for wrong in (["a1", "a2"], ("a1",), 1):
        with pytest.raises(SpecError, match="is no job's name; write each name as a text of its own"):
            change(wrong)
    with pytest.raises(SpecError, match="name jobs"):
        change()


def test_python_holds_the_whole_queue(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_STORAGE", str(queue.folder))
    assert raygen.hold(whole=True) == []
    assert queue.store.cluster(status_cluster(queue)).held_at is not None
    assert raygen.release(whole=True) == []
    assert queue.store.cluster(status_cluster(queue)).held_at is None
