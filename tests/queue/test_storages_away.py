"""While a storage is away its jobs wait, with that reason; when it is back they go on as if nothing had been."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_cluster import FakeCluster
from looking import away, is_asked_to_stop, let_backoffs_pass, now, outcomes, run_of, start, wait_until
from making import CLUSTER, queue_job

from raygen import submission
from raygen.errors import RunError, StorageError, StorageSilentError
from raygen.queue import storages as storages_module
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.job import JobState
from raygen.queue.storages import Storages
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.storage import MARK, Entry, Storage, reason
from raygen.storage.folder import Folder

pytestmark = pytest.mark.usefixtures("no_waiting")

MANY = 20


@pytest.fixture(autouse=True)
def _asked_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages_module, "CHECK_EVERY_S", 0.0)


@contextmanager
def missing(folder: Path) -> Iterator[None]:
    """There is no such folder for a while."""
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    yield
    if folder.exists():
        assert list(folder.iterdir()) == [], "nothing may be written where the storage is not"
        folder.rmdir()
    elsewhere.rename(folder)


@contextmanager
def not_mounted(folder: Path) -> Iterator[None]:
    """The folder is empty for a while, as that of a disk which is not mounted."""
    with missing(folder):
        folder.mkdir()
        yield


@contextmanager
def refusing(error: OSError) -> Iterator[None]:
    """The file system refuses all that is written, to everybody."""

    def refuse(self: Folder, key: str, content: object) -> AbstractContextManager[Path]:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "_written", refuse)
        yield


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No space is left on its device."""
    with refusing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        yield


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """This user may not write there."""
    with refusing(PermissionError(errno.EACCES, os.strerror(errno.EACCES))):
        yield


AWAY: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "there is no folder": missing,
    "has lost its runs and its mark": not_mounted,
    "No space left on device": full,
    "Permission denied": closed,
    "Too many levels of symbolic links": away,
}
every_way = pytest.mark.parametrize("reason", AWAY)


@every_way
def test_nothing_is_claimed_while_a_storage_is_away_and_ls_says_why(
    reason: str, queue: Store, storage: Path, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    jobs = [queue_job(queue, place, f"job-{number}", priority=1) for number in range(MANY)]
    other = queue_job(queue, storage, "other")
    with AWAY[reason](place):
        for _ in range(3):
            dispatcher.tick()
        reasons = queue.reasons([*jobs, other])
        for job in jobs:
            assert now(queue, job).state is JobState.QUEUED
            assert reasons[job.id].startswith("its storage is away: ")
            assert reason in reasons[job.id]
        if AWAY[reason] not in (full, closed):  # these are of the whole machine here
            assert now(queue, other).state is JobState.STARTING, "they hold back nobody"
    dispatcher.tick()
    started = [job for job in jobs if now(queue, job).state is JobState.STARTING]
    assert len(started) >= 3
    assert "away" not in queue.reasons(jobs)[jobs[-1].id]


@every_way
@pytest.mark.parametrize("ending", ["succeeded", "lost"])
def test_what_ran_is_judged_when_its_storage_is_back(
    reason: str, ending: str, queue: Store, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    job = start(queue, cluster, dispatcher, queue_job(queue, place, retries=0))
    if ending == "succeeded":
        cluster.end("job")
    else:
        cluster.end_without_a_word("job")
    with AWAY[reason](place):
        for _ in range(3):
            dispatcher.tick()
        waiting = now(queue, job)
        assert waiting.state is JobState.RUNNING
        assert reason in waiting.reason
    dispatcher.tick()
    expected = (
        "succeeded" if ending == "succeeded" else "recovering: its processes were ended, and its storage was away"
    )
    assert outcomes(queue, job)[0] == expected, "what a storage did is no loss of the job's"


def test_what_was_claimed_as_its_storage_went_away_is_submitted_when_it_is_back(
    queue: Store, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    job = queue_job(queue, place)
    cluster.refuse("job", for_good=False)  # so that it is claimed, and not submitted
    dispatcher.tick()
    cluster.take("job")
    with missing(place):
        dispatcher.tick()
        assert (now(queue, job).state, cluster.accepted()) == (JobState.STARTING, [])
        assert "there is no folder" in now(queue, job).reason
    dispatcher.tick()
    assert len(cluster.accepted()) == 1


def test_what_nobody_expected_of_one_storage_keeps_no_other_users_job_waiting(
    queue: Store,
    storage: Path,
    tmp_path: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = Folder.entry

    def odd(folder: Folder, key: str) -> Entry | None:
        if folder.path == tmp_path / "odd":
            raise RuntimeError("a library's own")
        return entry(folder, key)

    bad, fine = queue_job(queue, tmp_path / "odd", "bad"), queue_job(queue, storage, "fine")
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "entry", odd)
        dispatcher.tick()
        assert (now(queue, bad).state, now(queue, fine).state) == (JobState.QUEUED, JobState.STARTING)
        assert "an error in Raygen itself (RuntimeError: a library's own)" in queue.reasons([bad])[bad.id]
    dispatcher.tick()
    assert now(queue, bad).state is JobState.STARTING


@pytest.mark.parametrize("gone", ["ended", "forgotten"])
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_what_is_over_for_the_cluster_holds_no_devices_while_its_storage_is_away(
    gone: str,
    is_cancelled: bool,
    queue: Store,
    storage: Path,
    tmp_path: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
) -> None:
    place = tmp_path / "another"
    job = start(queue, cluster, dispatcher, queue_job(queue, place, cpus_each=4, retries=0))
    other = queue_job(queue, storage, "other", cpus_each=4)
    if gone == "ended":
        cluster.end_without_a_word("job")
    else:
        cluster.restart()
    if is_cancelled:
        queue.cancel(job)
    with missing(place):
        dispatcher.tick()
        over = now(queue, job)
        assert (over.state, over.is_over) == (JobState.RUNNING, True)
        assert "there is no folder" in over.reason
        assert now(queue, other).state is JobState.STARTING
        dispatcher.tick()
        assert now(queue, job).ran_s == over.ran_s, "it runs no more"
    dispatcher.tick()
    assert now(queue, job).state is (JobState.CANCELLED if is_cancelled else JobState.RECOVERING)
    assert now(queue, job).losses == 0


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_what_was_never_submitted_holds_no_devices_while_its_storage_is_away(
    is_cancelled: bool, queue: Store, storage: Path, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    job = queue_job(queue, place, cpus_each=4, retries=0)
    cluster.refuse("job", for_good=False)  # so that it is claimed, and not submitted
    dispatcher.tick()
    cluster.take("job")
    queue_job(queue, storage, "other", cpus_each=4)
    if is_cancelled:
        queue.cancel(job)
    with missing(place):
        for _ in range(2):
            dispatcher.tick()
        assert now(queue, job).state is JobState.STARTING
        assert len(cluster.accepted("other")) == 1
    dispatcher.tick()
    judged = now(queue, job)
    assert cluster.accepted("job") == [], "its devices are another's now"
    if is_cancelled:
        assert judged.state is JobState.CANCELLED
    else:
        assert (judged.state, judged.losses) == (JobState.RECOVERING, 0)
        assert judged.reason == "its storage went away before it could start"


def test_a_run_that_was_deleted_is_told_from_a_storage_that_is_away(
    queue: Store, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    job = start(queue, cluster, dispatcher, queue_job(queue, place))
    run_of(job).remove()
    dispatcher.tick()
    assert now(queue, job).state is JobState.FAILED
    assert now(queue, job).reason.startswith("there is no run 'job'")


def test_a_storage_of_before_is_marked_by_the_runs_that_are_in_it(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    queue_job(queue, storage)
    assert Storage(storage).entry(MARK) is None
    dispatcher.tick()
    assert Storage(storage).entry(MARK) is not None
    assert len(cluster.accepted()) == 1


# A storage that hangs


def test_a_storage_that_hangs_holds_up_no_look(
    queue: Store,
    storage: Path,
    tmp_path: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storages_module, "SILENCE_S", 0.2)
    hung = str(tmp_path / "hung")
    job = queue_job(queue, hung)
    answers = threading.Event()
    check = Storage.check
    monkeypatch.setattr(Storage, "check", lambda self: answers.wait(60) and None if self.url == hung else check(self))
    other = queue_job(queue, storage, "other")
    began_s = time.monotonic()
    for _ in range(10):
        dispatcher.tick()
    assert time.monotonic() - began_s < 5, "it is waited for once"
    assert now(queue, other).state is JobState.STARTING
    assert queue.reasons([job])[job.id] == f"its storage is away: {hung} does not answer"
    assert sum(thread.name == "storage" for thread in threading.enumerate()) == 1
    answers.set()
    wait_until(lambda: dispatcher.tick() or now(queue, job).state is JobState.STARTING)


def test_an_answer_that_comes_late_is_heard_by_whoever_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages_module, "SILENCE_S", 0.05)
    place = str(tmp_path)
    Storage(place).mark()
    answers, asked = threading.Event(), []

    def question(storage: Storage) -> str:
        asked.append(storage)
        answers.wait(20)
        return "so it is"

    storages = Storages()
    for _ in range(3):
        with pytest.raises(StorageError, match="does not answer"):
            storages.ask(place, "one", question)
    with pytest.raises(StorageError, match="does not answer"):
        storages.ask(place, "another", lambda storage: "at once")
    answers.set()
    wait_until(lambda: not any(thread.name == "storage" for thread in threading.enumerate()))
    assert storages.ask(place, "another", lambda storage: "at once") == "at once"
    assert storages.ask(place, "one", question) == "so it is"
    assert len(asked) == 1


def test_all_storages_are_asked_before_one_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server may keep those of many people, and be slow."""
    monkeypatch.setattr(storages_module, "SILENCE_S", 30.0)
    places = [str(tmp_path / name) for name in "abcdef"]
    for place in places:
        Storage(place).mark()
    together = threading.Barrier(len(places))
    monkeypatch.setattr(Storage, "check", lambda self: together.wait(20) and None)
    storages = Storages()
    storages.check(dict.fromkeys(places, ()))
    assert storages.problems == {}


def test_a_look_waits_once_however_many_storages_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages_module, "SILENCE_S", 2.0)
    places = [str(tmp_path / name) for name in "abcdefgh"]
    for place in places:
        Storage(place).mark()
    storages, answers = Storages(), threading.Event()
    storages.check(dict.fromkeys(places, ()))
    began_s = time.monotonic()
    for place in places:
        with pytest.raises(StorageSilentError):
            storages.ask(place, "one", lambda storage: answers.wait(60))
    monkeypatch.setattr(Storage, "check", lambda self: answers.wait(60) and None)
    storages.check(dict.fromkeys(places, ()))
    answers.set()
    assert time.monotonic() - began_s < 4 * storages_module.SILENCE_S, "twice two seconds, not sixteen times"
    assert list(storages.problems) == places


def test_a_question_that_takes_its_time_makes_no_storage_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages_module, "SILENCE_S", 0.1)
    place, answers = str(tmp_path), threading.Event()
    Storage(place).mark()
    storages = Storages()
    with pytest.raises(StorageSilentError):
        storages.ask(place, "one", lambda storage: answers.wait(60))
    wait_until(lambda: storages.check({place: ()}) or not storages.problems)  # it is asked beside
    assert not storages.was_away_within(place, 1e6)
    answers.set()


@pytest.mark.parametrize("is_long", [False, True])
def test_a_storage_is_away_that_is_silent_for_long_and_not_one_that_is_slow(
    is_long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages_module, "SILENCE_S", 0.05)
    if is_long:
        monkeypatch.setattr(storages_module, "LONG_SILENCE_S", 0.0)
    place, answers = str(tmp_path), threading.Event()
    Storage(place).mark()
    monkeypatch.setattr(Storage, "check", lambda self: answers.wait(60) and None)
    storages = Storages()
    storages.check({place: ()})
    assert storages.problems == {place: f"{place} does not answer"}
    answers.set()
    wait_until(lambda: storages.check({place: ()}) or not storages.problems)
    assert storages.was_away_within(place, 1e6) is is_long


def test_a_job_whose_every_attempt_is_lost_fails_though_its_record_takes_its_time(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a search with many trials does."""
    monkeypatch.setattr(storages_module, "SILENCE_S", 0.1)
    look = Run.look
    monkeypatch.setattr(Run, "look", lambda self: time.sleep(0.5) or look(self))
    job = queue_job(queue, storage, retries=1)
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: dispatcher.tick() or len(cluster.accepted()) == attempt)  # type: ignore[misc]
        cluster.end_without_a_word("job", "exit code 139")
    wait_until(lambda: dispatcher.tick() or now(queue, job).state is JobState.FAILED)
    assert now(queue, job).attempt == 2
    assert "away" not in now(queue, job).reason


def test_what_nobody_expected_of_a_record_is_the_fault_of_one_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Storage(tmp_path).mark()

    def question(storage: Storage) -> None:
        raise KeyError("spec")

    with pytest.raises(RunError, match=r"an error in Raygen itself \(KeyError: 'spec'\)"):
        Storages().ask(str(tmp_path), "one", question)
    assert "Traceback" in caplog.text


def test_a_record_that_raises_what_nobody_expected_fails_its_job_and_no_other(
    queue: Store,
    storage: Path,
    cluster: FakeCluster,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    cancelled = start(queue, cluster, dispatcher, queue_job(queue, storage, "cancelled"))
    look = Run.look

    def odd(run: Run) -> object:
        if run.name in ("job", "cancelled"):
            raise TypeError("'NoneType' object is not subscriptable")
        return look(run)

    monkeypatch.setattr(Run, "look", odd)
    queue.cancel(cancelled)
    for name in ("job", "cancelled"):
        cluster.end_without_a_word(name)
    other = queue_job(queue, storage, "other")
    dispatcher.tick()
    assert now(queue, job).state is JobState.FAILED
    assert now(queue, job).reason.startswith("an error in Raygen itself (TypeError: ")
    assert now(queue, cancelled).state is JobState.CANCELLED
    assert now(queue, other).state is JobState.STARTING


def test_an_address_that_is_none_concerns_its_job_alone(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    job = start(queue, cluster, dispatcher, queue_job(queue, storage))
    odd = queue_job(queue, storage, "odd")
    other = queue_job(queue, storage, "other")
    with queue.engine.begin() as connection:
        for each in (job, odd):
            connection.exec_driver_sql(f"UPDATE jobs SET storage = 'ftp://nowhere' WHERE id = {each.id}")
    cluster.end_without_a_word("job")
    queue.cancel(job)
    dispatcher.tick()
    assert now(queue, other).state is JobState.STARTING
    assert "ftp://nowhere" in queue.reasons([now(queue, odd)])[odd.id]


def test_two_dispatchers_say_only_what_both_of_them_see(
    queue: Store, storage: Path, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    """A disk may be missing on one machine alone: then the other starts its jobs."""
    place = tmp_path / "another"
    queue_job(queue, storage, "filling", cpus_each=4)
    job = queue_job(queue, place)
    with missing(place):
        dispatcher.tick()
        assert "away" in queue.reasons([job])[job.id]
        other = Dispatcher(queue, cluster, CLUSTER)
        assert "away" not in queue.reasons([job])[job.id]
        other.tick()
        assert "away" in queue.reasons([job])[job.id]
    other.tick()
    assert "away" not in queue.reasons([job])[job.id]


def test_a_storage_that_was_emptied_on_purpose_begins_anew_when_somebody_says_so(
    queue: Store, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    running = start(queue, cluster, dispatcher, queue_job(queue, place, "b"))
    waiting = [queue_job(queue, place, name, cpus_each=4) for name in ("a", "z")]
    shutil.rmtree(place)
    dispatcher.tick()
    dispatcher.tick()
    assert now(queue, running).state is JobState.RUNNING
    assert "there is no folder" in now(queue, running).reason
    assert "make the file .raygen-storage in it" in queue.reasons(waiting)[waiting[0].id]
    place.mkdir()
    (place / ".raygen-storage").touch()
    queue_job(queue, place, "new", cpus_each=4)
    dispatcher.tick()
    assert now(queue, running).state is JobState.FAILED
    assert now(queue, running).reason.startswith("there is no run 'b'")


def test_no_job_begins_a_storage_anew_that_is_away(
    queue: Store, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    submission.check_kept(queue, Storage(str(place)))
    start(queue, cluster, dispatcher, queue_job(queue, place, "a"))
    queue_job(queue, place, "b", cpus_each=4)
    submission.check_kept(queue, Storage(str(place)))
    with missing(place):
        with pytest.raises(StorageError, match="is its disk mounted"):
            submission.check_kept(queue, Storage(str(place)))
        place.mkdir()
        with pytest.raises(StorageError, match="is its disk mounted"):
            submission.check_kept(queue, Storage(str(place)))
        place.rmdir()
    submission.check_kept(queue, Storage(str(place)))


# A storage that is nearly full

FULL = f"cannot write /runs/x: No space left on device; {reason.FULL}"


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How much room the file system says that it has."""
    says = {"bytes": 10**12}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**13, free=says["bytes"]))
    return says


def test_no_job_starts_in_a_storage_with_little_room_and_what_ran_there_is_judged(
    room: dict[str, int], queue: Store, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    running = start(queue, cluster, dispatcher, queue_job(queue, place, "running"))
    ending = start(queue, cluster, dispatcher, queue_job(queue, place, "ending"))
    waiting = queue_job(queue, place, "waiting")
    room["bytes"] = 50_000_000
    cluster.end("ending")
    queue.cancel(running)
    dispatcher.tick()
    assert now(queue, ending).state is JobState.SUCCEEDED
    assert is_asked_to_stop(running)
    assert now(queue, waiting).state is JobState.QUEUED
    told = f"{place} has less than 67 MB left, and no job starts with that; free some space there"
    assert told in queue.reasons([waiting])[waiting.id]
    room["bytes"] = 80_000_000
    dispatcher.tick()
    assert now(queue, waiting).state is JobState.STARTING


def test_what_was_lost_for_want_of_room_costs_no_attempt_and_waits_for_more(
    room: dict[str, int], queue: Store, tmp_path: Path, cluster: FakeCluster, dispatcher: Dispatcher
) -> None:
    place = tmp_path / "another"
    job = start(queue, cluster, dispatcher, queue_job(queue, place, retries=0))
    room["bytes"] = 300_000_000
    cluster.end("job", "failed", FULL, cause="lost")
    for each in (300_000_000, 599_000_000):
        room["bytes"] = each
        let_backoffs_pass(queue)
        dispatcher.tick()
        assert (now(queue, job).state, now(queue, job).losses) == (JobState.RECOVERING, 0)
    assert "has less than 600 MB left" in queue.reasons([now(queue, job)])[job.id]
    room["bytes"] = 600_000_000
    dispatcher.tick()
    assert now(queue, job).state is JobState.STARTING


def test_a_file_system_that_does_not_say_how_much_room_it_has_is_used(
    queue: Store, storage: Path, cluster: FakeCluster, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, free=0))
    job = queue_job(queue, storage)
    dispatcher.tick()
    assert now(queue, job).state is JobState.STARTING
