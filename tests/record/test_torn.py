"""Documents that a loss of power has left torn are as good as never written: a run goes on from what was before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen.errors import OutOfMemoryError, ProcessLostError, RunError
from raygen.record.attempt import Attempt
from raygen.record.documents import CheckpointRecord, Progress, newest_whole, parse_whole
from raygen.record.liveness import Liveness
from raygen.record.run import Run
from raygen.record.trial import TrialWriter, _trials_of_attempt, claim, failure_of, newest_progress
from raygen.record.view import View
from raygen.spec import TrainSpec
from raygen.storage import Storage
from tests.record.test_documents import DOCUMENTS, read_all
from tests.record.test_trial import epoch_of, save
from tests.searches import add_trial, begin, best_facts, create

torn = pytest.mark.parametrize("tear", [lambda c: b"", lambda c: b"\0" * 99, lambda c: c[: len(c) // 2]])
Tear = Callable[[bytes], bytes]


@pytest.fixture
def run(folder: Storage) -> Run:
    """A training of which nothing has begun."""
    return create(folder, TrainSpec.create("ae", {"training.epochs": 5}), name="run")


def tear_up(run: Run, key: str, tear: Tear) -> None:
    content = run.storage.get(f"run/{key}")
    assert content is not None
    run.storage.put(f"run/{key}", tear(content))


def looked_at(run: Run) -> View:
    """The run as somebody sees it who has not looked before."""
    return Run(run.storage, run.name).look()


@torn
def test_a_run_whose_own_document_is_torn_is_named(run: Run, tear: Tear) -> None:
    tear_up(run, "run.json", tear)
    with pytest.raises(RunError, match=r"^run/run\.json is damaged: it was never written whole$"):
        looked_at(run)


@torn
def test_a_torn_request_asks_for_nothing_and_keeps_its_number(run: Run, tear: Tear) -> None:
    run.request(reopens=True, spec=run.look().spec().with_settings({"training.epochs": 9}))
    tear_up(run, "requests/0001.json", tear)
    assert (looked_at(run).requests, looked_at(run).spec().training.epochs) == (1, 5)
    Run(run.storage, run.name).request(reopens=True, spec=run.look().spec().with_settings({"training.epochs": 7}))
    assert (looked_at(run).requests, looked_at(run).spec().training.epochs) == (2, 7)
    assert begin(run).look().unanswered == ()


@torn
def test_a_torn_attempt_never_begins_and_the_next_goes_on_from_the_one_before(run: Run, tear: Tear) -> None:
    add_trial(begin(run), {}, [0.5, 0.4], state="running")
    first = looked_at(run)
    add_trial(begin(run), {}, [0.9])
    tear_up(run, "attempts/0002.json", tear)
    assert (looked_at(run).attempt, looked_at(run).trials) == (1, first.trials)
    again = Run(run.storage, run.name)
    assert again.seal(2)
    assert Attempt.begin(run.storage, "run", 2) is None
    third = Attempt.begin(run.storage, "run", 3)
    assert third is not None
    third.close()
    assert (looked_at(run).attempt, [len(trial.epochs) for trial in looked_at(run).trials]) == (3, [2])


@torn
def test_of_a_torn_status_the_attempt_s_process_tells(run: Run, place: Storage, tear: Tear) -> None:
    attempt = begin(run)
    attempt.set_status("finished")
    tear_up(run, "attempts/0001/status.json", tear)
    status = looked_at(run).status
    assert (status.state, status.reason) == ("interrupted", "its process ended without a word")


@torn
def test_an_attempt_with_a_torn_status_lives_in_a_bucket_as_long_as_it_shows(bucket: Storage, tear: Tear) -> None:
    run = create(bucket, TrainSpec.create("ae", {}), name="run")
    attempt = begin(run)
    attempt.set_status("finished")
    assert not Liveness().is_alive(bucket, "run", 1)
    tear_up(run, "attempts/0001/status.json", tear)
    assert Liveness().is_alive(bucket, "run", 1), "until it has been watched for a while"


@torn
def test_an_attempt_that_finished_with_a_torn_result_is_to_end_again(run: Run, tear: Tear) -> None:
    first = begin(run)
    add_trial(first, {}, [0.5, 0.4, 0.3, 0.2, 0.1])
    first.put_best([(best_facts(), {"model.safetensors": b""})])
    earlier = looked_at(run).result
    second = begin(run)
    second.put_best([(best_facts(), {"model.safetensors": b""})])
    second.set_status("finished")
    assert looked_at(run).status.state == "finished"
    tear_up(run, "attempts/0002/result.json", tear)
    view = looked_at(run)
    assert (view.status.state, view.status.reason) == (
        "interrupted",
        "run/attempts/0002/result.json was never written whole",
    )
    assert (view.result, view.result_key) == (earlier, "run/attempts/0001/result.json")
    third = begin(Run(run.storage, run.name))
    third.set_status("finished")
    assert looked_at(run).status.state == "finished"
    tear_up(run, "attempts/0001/result.json", tear)
    assert (looked_at(run).result, looked_at(run).result_key) == (None, None)


@torn
def test_a_result_that_names_a_torn_trial_does_not_count(run: Run, tear: Tear) -> None:
    attempt = begin(run)
    add_trial(attempt, {}, [0.5])
    attempt.put_best([(best_facts(), {"model.safetensors": b""})])
    attempt.set_status("finished")
    tear_up(run, "attempts/0001/trials/001/trial.json", tear)
    assert (looked_at(run).trials, looked_at(run).result) == ((), None)
    assert looked_at(run).status.state == "interrupted"


@torn
def test_a_torn_trial_was_not_made(run: Run, tear: Tear) -> None:
    attempt = begin(run)
    add_trial(attempt, {}, [0.5])
    add_trial(attempt, {}, [0.4])
    tear_up(run, "attempts/0001/trials/001/trial.json", tear)
    assert [trial.number for trial in looked_at(run).trials] == [2]


@torn
@pytest.mark.parametrize("is_there", [True, False])
def test_of_a_torn_start_the_one_before_counts_if_its_checkpoint_is_there(
    run: Run, tear: Tear, is_there: bool
) -> None:
    attempt = begin(run)
    add_trial(attempt, {}, [0.5], state="running")
    writer = TrialWriter.begin(attempt.place(1))
    save(writer, 7)
    writer.set_state("running")
    checkpoint = looked_at(run).trial(1).progress.checkpoint
    writer.close()
    TrialWriter.begin(attempt.place(1)).close()
    tear_up(run, "attempts/0001/trials/001/0003.json", tear)
    if not is_there:
        run.storage.delete([str(checkpoint)])
    seen = looked_at(run).trial(1).progress
    assert (seen.checkpoint, seen.epochs_wanted) == (checkpoint if is_there else None, 5)
    assert newest_progress(run.storage, attempt.place(1)) == seen
    assert begin(Run(run.storage, run.name)).look().trial(1).state == "interrupted"
    again = TrialWriter.begin(begin(Run(run.storage, run.name)).place(1))
    again.fetch_checkpoint()
    assert again.checkpoint.exists() == is_there
    again.close()


def three_checkpoints(run: Run) -> Attempt:
    """An attempt at a training that has written three, after 10, 20 and 30 steps, and its third epoch."""
    attempt = begin(run)
    add_trial(attempt, {}, [], state="running")
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        for number in (1, 2, 3):
            writer.record_epoch(epoch_of(number))
            save(writer, 10 * number, f"after {10 * number}".encode())
    return attempt


@torn
def test_of_a_torn_checkpoint_the_one_before_counts(run: Run, tear: Tear) -> None:
    attempt = three_checkpoints(run)
    newest, before = (saved.key for saved in attempt.look().trial(1).progress.checkpoints)
    tear_up(run, newest.removeprefix("run/"), tear)
    with contextlib.closing(TrialWriter.begin(begin(run).place(1))) as again:
        assert again.fetch_checkpoint() == f"trial 1 goes on from step 20: {newest} is damaged"
        assert again.checkpoint.read_bytes() == b"after 20"
        assert again.epochs_done() == 2
        save(again, 30)
    saved = looked_at(run).trial(1).progress.checkpoints
    assert [each.step for each in saved] == [30, 20]
    assert {entry.key for entry in run.storage.list("run") if entry.key.endswith(".safetensors")} == {
        saved[0].key,
        before,
    }


@torn
def test_a_trial_whose_checkpoints_are_all_torn_begins_anew(run: Run, tear: Tear) -> None:
    attempt = three_checkpoints(run)
    saved = attempt.look().trial(1).progress.checkpoints
    for each in saved:
        tear_up(run, each.key.removeprefix("run/"), tear)
    with contextlib.closing(TrialWriter.begin(begin(run).place(1))) as again:
        assert again.fetch_checkpoint() == f"trial 1 begins anew: {saved[0].key} is damaged"
        assert not again.checkpoint.exists()
        again.record_epoch(epoch_of(1))
        again.set_state("running")
    trial = looked_at(run).trial(1)
    assert ([each.epoch for each in trial.epochs], trial.progress.checkpoint) == ([1], None)


def test_every_process_of_a_group_takes_the_same_checkpoint(run: Run) -> None:
    attempt = three_checkpoints(run)
    tear_up(run, str(attempt.look().trial(1).progress.checkpoint).removeprefix("run/"), lambda content: b"")
    number, _ = claim(run.storage, attempt.place(1), lambda progress: progress)
    for _ in range(2):
        with contextlib.closing(TrialWriter.join(attempt.place(1), number)) as writer:
            writer.fetch_checkpoint()
            assert writer.checkpoint.read_bytes() == b"after 20"


@torn
def test_a_torn_failure_was_never_told(run: Run, tear: Tear) -> None:
    attempt = begin(run)
    add_trial(attempt, {}, [], state="running")
    with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
        writer.record_failure(OutOfMemoryError("too large"))
    tear_up(run, "attempts/0001/trials/001/0002.failure", tear)
    assert failure_of(run.storage, attempt.place(1), 2) is None


@torn
@pytest.mark.parametrize("key", ["attempts/0002.json", "attempts/0002/trials/002/trial.json"])
def test_a_process_whose_attempt_or_trial_is_torn_is_lost(run: Run, tear: Tear, key: str) -> None:
    add_trial(begin(run), {}, [0.5], state="running")
    attempt = begin(run)
    trial = add_trial(attempt, {}, [0.5], state="running").number if "trials" in key else 1
    tear_up(run, key, tear)
    _trials_of_attempt.cache_clear()
    with pytest.raises(ProcessLostError, match=f"^run/{key} was never written whole$"):
        TrialWriter.begin(attempt.place(trial))


@torn
def test_a_process_whose_start_is_torn_is_lost(run: Run, tear: Tear) -> None:
    attempt = begin(run)
    add_trial(attempt, {}, [], state="running")
    number, _ = claim(run.storage, attempt.place(1), lambda progress: progress)
    tear_up(run, f"attempts/0001/trials/001/{number:04d}.json", tear)
    with pytest.raises(ProcessLostError, match=r"0002\.json was never written whole$"):
        TrialWriter.join(attempt.place(1), number)


@given(data=st.data(), key=st.sampled_from(DOCUMENTS[1:]), zeros=st.integers(0, 3))
@settings(max_examples=60)
def test_wherever_a_document_is_torn_its_run_can_be_read(
    data: st.DataObject, key: str, zeros: int, search: Storage
) -> None:
    content = search.get(key) or b""
    search.put(key, content[: data.draw(st.integers(0, len(content) - 1))] + b"\0" * zeros)
    try:
        read_all(Run(search, "run"))
    finally:
        search.put(key, content)


@given(
    starts=st.lists(st.one_of(st.none(), st.sampled_from([None, "a", "b"]).map(lambda key: (key,))), max_size=5),
    found=st.sampled_from([None, "a", "b"]),
    there=st.sets(st.sampled_from(["a", "b"])),
)
def test_no_checkpoint_counts_that_has_gone_unless_a_whole_document_names_it(
    starts: list[tuple[str | None] | None], found: str | None, there: set[str]
) -> None:
    def written_of(key: str | None) -> Progress:
        saved = () if key is None else (CheckpointRecord(key=key, step=1, epochs=1, crc32=0),)
        return Progress(epochs_wanted=3, checkpoints=saved)

    written = [None if start is None else written_of(*start) for start in starts]
    counts = newest_whole(written, written_of(found), there.__contains__)
    if written and written[0] is None:
        assert counts.checkpoint is None or counts.checkpoint in there
    else:
        assert counts.checkpoint == (starts[0][0] if starts and starts[0] else found)


@pytest.mark.parametrize("content", [b"[", b"nul", b"{}x", b'{"a" 1', b'{"a": ]', b'{"a":' * 999, b"\xff"])
def test_what_is_damaged_otherwise_is_not_torn(content: bytes) -> None:
    with pytest.raises(RunError, match=r"^key (is damaged: |was written by another version)"):
        parse_whole(Progress, "key", content)
