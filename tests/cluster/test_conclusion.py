"""What an attempt at a search comes to, by the states of its trials."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

from raygen.cluster.driver import conclude
from raygen.cluster.search import RunSearcher
from raygen.cluster.tune import FailureRecorder
from raygen.errors import JobFailedError, ProcessLostError, RunInterruptedError
from raygen.record.attempt import Attempt
from raygen.record.documents import CheckpointRecord, RunState, Status
from raygen.spec import TuneSpec
from tests.searches import PLAN, begin, create, run_of

FINISHED = Status(state="finished")
LOST = Status(state="failed", reason="The actor died because its node died.", cause="lost")
NOT_FINITE = Status(state="failed", reason="the ae loss is not finite at step 3", cause="non-finite loss")
INTERRUPTED = Status(state="interrupted")


def search(storage: Path, *ends: Status) -> Attempt:
    spec = TuneSpec.search_over("ae", "ae", {"search.trials": len(ends)})
    attempt = begin(create(storage, spec))
    for number, end in enumerate(ends, start=1):
        attempt.new_trial(number, {}, spec)
        attempt.set_trial_state(number, end.state, end.reason, end.cause)
    return attempt


def test_a_search_that_lost_a_trial_is_not_finished_and_goes_on_with_that_one(tmp_path: Path) -> None:
    attempt = search(tmp_path, FINISHED, LOST, NOT_FINITE)
    with pytest.raises(ProcessLostError, match="1 of 3 trials lost, the last one because: The actor died"):
        conclude(attempt)
    assert attempt.look().status.state != "finished"
    after = begin(run_of(attempt)).look()
    assert [trial.state for trial in after.trials] == ["finished", "interrupted", "failed"]


def test_trials_that_fail_by_themselves_do_not_keep_a_search_from_being_finished(tmp_path: Path) -> None:
    attempt = search(tmp_path, NOT_FINITE, FINISHED)
    conclude(attempt)
    assert attempt.look().status.state == "finished"


def test_a_search_without_any_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="every trial failed, the last one because: the ae loss") as caught:
        conclude(search(tmp_path, NOT_FINITE, NOT_FINITE))
    assert caught.value.cause == "non-finite loss"


def test_one_that_was_asked_to_stop_is_interrupted_unless_all_its_trials_have_ended(tmp_path: Path) -> None:
    stopped, complete = search(tmp_path, FINISHED, INTERRUPTED), search(tmp_path, FINISHED, FINISHED)
    for attempt in (stopped, complete):
        attempt.ask_to_stop()
    with pytest.raises(RunInterruptedError, match=r"^stopped on request; what was trained is kept$"):
        conclude(stopped)
    conclude(complete)
    assert complete.look().status.state == "finished"


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("by its time limit of 2 h", "by its time limit of 2 h"),
        ("", "on request"),
        ("by\nx", "by"),
        ("y" * 999, "y" * 200),
    ],
)
def test_one_that_was_stopped_says_why(why: str, told: str, tmp_path: Path) -> None:
    attempt = search(tmp_path, FINISHED, INTERRUPTED)
    run_of(attempt).ask_to_stop(attempt.number, why)
    run_of(attempt).ask_to_stop(attempt.number, "later, for another reason")
    with pytest.raises(RunInterruptedError, match=f"^stopped {told}; what was trained is kept$"):
        conclude(attempt)


def test_a_stop_that_its_trials_have_heard_alone_does_not_finish_it(tmp_path: Path) -> None:
    attempt = search(tmp_path, FINISHED, INTERRUPTED)
    with pytest.raises(RunInterruptedError):
        conclude(attempt)  # a trial that was left off is no result


@pytest.mark.parametrize("state", ["running", "waiting"])
def test_a_trial_that_could_not_even_say_that_it_ended_is_lost(state: RunState, tmp_path: Path) -> None:
    attempt = search(tmp_path, FINISHED, Status(state=state))
    with pytest.raises(
        ProcessLostError, match=r"^1 of 2 trials lost, the last one because: its process ended without a word$"
    ):
        conclude(attempt)
    lost = attempt.look().trial(2).progress
    assert (lost.state, lost.cause) == ("failed", "lost")
    assert [trial.state for trial in begin(run_of(attempt)).look().trials] == ["finished", "interrupted"]


def test_one_of_which_no_trial_is_on_record_is_lost(tmp_path: Path) -> None:
    """A loss of power has torn its only trial's document."""
    attempt = search(tmp_path, FINISHED)
    attempt.storage.put(attempt.place(1).keys.document, b"")
    with pytest.raises(ProcessLostError, match=r"^nothing of it is on record$"):
        conclude(attempt)


def test_the_failure_of_a_trial_that_is_not_on_record_ends_no_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt, recorder, trial = known_to_tune(tmp_path)
    Path(trial.error_file).write_text("Failure # 1 (occurred at 2026-11-22_16-57-21)\nThe actor died.\n")
    attempt.storage.put(attempt.place(1).keys.document, b"")
    recorder.on_trial_error(1, [trial], trial)
    key = attempt.place(1).keys.document
    assert capsys.readouterr().out == f"trial 1: {key} was never written whole\n"


def test_whether_to_stop_is_known_at_once(tmp_path: Path) -> None:
    attempt = search(tmp_path, FINISHED)
    assert not attempt.should_stop()
    run_of(attempt).ask_to_stop(attempt.number)
    assert attempt.should_stop()


DIED = """The actor died unexpectedly before finishing this task.
	class_name: with_resources.<locals>.ResourceTrainable
	actor_id: df664dcc59ada01322cc4f7701000000
	pid: 2578
	ip: 192.0.2.2
"""
FRAMES = """\x1b[36mray::TrialActor.step()\x1b[39m (pid=2578, ip=192.0.2.2, actor_id=01000000, repr=<TrialActor>)
  File "/lib/python3.11/site-packages/ray/tune/trainable/trainable.py", line 331, in train
    result = self.step()
             ^^^^^^^^^^^
"""
TEXTS = {
    "killed": (
        f"{DIED}The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
        "detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: "
        "(1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or "
        "(3) the worker crashed unexpectedly due to SIGSEGV or another unexpected error.",
        "The actor is dead because its worker process has died. ",
        "lost",
    ),
    "killed for memory": (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was "
        "4.41GB used / 23.54GB limit (0.187521)\nOOM kill reason: Memory usage exceeded threshold\n"
        "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n15303\t1.06\tpython -m \nRefer to the documentation on how to "
        "address the out of memory issue: https://docs.ray.io/en/latest/debug-memory.html.",
        "a process was killed, as happens if memory runs out: 1 worker(s) were killed due to the node running low on",
        "lost",
    ),
    "its node died": (
        f"{DIED}The actor died because its node has died. Node Id: 17\n\tthe actor's node was terminated "
        "unexpectedly: health check failed due to missing too many heartbeats",
        "The actor died because its node has died. Node Id: 17",
        "lost",
    ),
    "killed as it began": (
        f"{DIED}The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR\n"
        "The actor never ran - it was cancelled before it started running.",
        "The actor is dead because its worker process has died. ",
        "lost",
    ),
    "silent": (
        "The actor 17 is unavailable: RpcError. The task may have run.",
        "The actor 17 is unavailable:",
        "lost",
    ),
    "crashed": (str(WorkerCrashedError()), "The worker died unexpectedly while executing this task.", "lost"),
    "met another's loss": (
        f"{FRAMES}ray.exceptions.ActorDiedError: {DIED}The actor is dead because its node has died.",
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
        "lost",
    ),
    "could not begin": (
        f"The actor died because of an error raised in its creation task, {FRAMES}"
        "raygen.errors.StorageError: cannot write s3://bucket/run: no answer",
        "raygen.errors.StorageError: cannot write s3://bucket/run: no answer",
        "lost",
    ),
    "too large": (
        f"{FRAMES}torch.OutOfMemoryError: CUDA out of memory.",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "out of memory",
    ),
    "met a full disk": (
        f"{FRAMES}raygen.errors.MachineStorageError: cannot write temporary files on node-3: No space left on device",
        "raygen.errors.MachineStorageError: cannot write temporary files on node-3: No space left on device",
        "lost",
    ),
    "wrong": (
        f"{FRAMES}ValueError: first\n  second line\n\nThe above exception was the direct cause of the following "
        f"exception:\n\n{FRAMES}RuntimeError: too many\nvalues\n  of OutOfMemoryError",
        "RuntimeError: too many",
        "error",
    ),
}
"""What Ray 2.60 says, what a person is told of it, and what it comes to."""


def known_to_tune(storage: Path) -> tuple[Attempt, FailureRecorder, Any]:
    """An attempt at a search whose first trial Tune runs; `run_metadata` counts its failures, as Tune does."""
    attempt = begin(create(storage / "runs", TuneSpec.search_over("ae", "ae", {"search.trials": 1})))
    searcher = RunSearcher(attempt, attempt.look().spec(), PLAN)
    searcher.suggest("known to Tune as this")
    return (
        attempt,
        FailureRecorder(attempt, searcher),
        SimpleNamespace(
            error_file=str(storage / "error.txt"),
            trial_id="known to Tune as this",
            run_metadata=SimpleNamespace(num_failures=0),
        ),
    )


@pytest.mark.parametrize("what", TEXTS)
def test_a_trial_whose_actor_failed_has_the_reason_and_cause_of_that(what: str, tmp_path: Path) -> None:
    text, told, cause = TEXTS[what]
    attempt, recorder, trial = known_to_tune(tmp_path)
    Path(trial.error_file).write_text(
        f"Failure # 1 (occurred at 2026-11-22_16-57-21)\n{FRAMES}ValueError: an earlier one\n"
        f"Failure # 2 (occurred at 2026-11-22_16-57-28)\n{text}\n"
    )
    recorder.on_trial_error(1, [trial], trial)
    [found] = attempt.look().trials
    assert (found.state, found.progress.cause) == ("failed", cause)
    assert found.progress.reason.startswith(told)
    assert len(found.progress.reason) <= 200


def test_losses_count_in_a_row_without_a_new_checkpoint(tmp_path: Path) -> None:
    attempt, recorder, trial = known_to_tune(tmp_path)

    def is_lost(*, after: str | None) -> int:
        """Lose it once more, with that as its newest checkpoint; how many losses count then."""
        saved = () if after is None else (CheckpointRecord(key=after, step=1, epochs=1, crc32=0),)
        attempt.change_trial(1, lambda progress: progress.model_copy(update={"checkpoints": saved}))
        trial.run_metadata.num_failures += 1
        recorder.on_trial_recover(1, [trial], trial)
        return int(trial.run_metadata.num_failures)

    assert [is_lost(after=key) for key in (None, None, "a", "a", "a", "b", "c")] == [1, 2, 0, 1, 2, 0, 0]
