"""What a trial's own processes write about it."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen.data.stored import InStorage
from raygen.errors import Cause, CheckpointError, JobFailedError, ProcessLostError, RunError, TrainingError
from raygen.progress import in_lines
from raygen.record import layout
from raygen.record.checkpoints import checksum, newest_readable
from raygen.record.courier import Courier
from raygen.record.documents import (
    AnyDocument,
    AttemptDocument,
    CheckpointRecord,
    EpochRecord,
    PaceRecord,
    Progress,
    RunDocument,
    Taken,
    TrialDocument,
    TrialState,
    dump,
    newest_whole,
    parse,
    parse_whole,
)
from raygen.record.layout import RunKeys, StartKeys, TrialKeys
from raygen.record.lookout import Lookout
from raygen.record.scratch import Scratch
from raygen.record.view import Trial
from raygen.storage import Storage

if TYPE_CHECKING:
    from PIL.Image import Image

    from raygen.spec import TrainSpec
    from raygen.training.loop import Epoch, Pace


@dataclass(frozen=True)
class TrialPlace:
    """Which trial of which attempt, as plain JSON carries it from process to process."""

    storage: str
    run: str
    attempt: int
    trial: int

    @property
    def keys(self) -> TrialKeys:
        """The keys of what is written about it."""
        return RunKeys(self.run).attempt(self.attempt).trial(self.trial)

    def as_json(self) -> dict[str, Any]:
        """The place in plain JSON."""
        return dict(vars(self))


class TrialWriter:
    """One start of the process that trains a trial; all that an earlier start writes from now on is never read.

    It writes and looks through threads, so nothing here waits for the storage but `begin`, `set_state` and `close`.
    """

    def __init__(
        self, storage: Storage, place: TrialPlace, keys: StartKeys, document: TrialDocument, progress: Progress
    ) -> None:
        self._storage = storage
        self._place = place
        self._keys = keys
        self._document = document
        self._progress = progress
        self._is_stopped = False
        self._look()
        self._scratch = Scratch()
        self._saves = itertools.count()
        self._unreadable: set[str] = set()
        self._courier = Courier(storage, may_remove=self._is_newest)
        self._lookout = Lookout(storage, self._look)

    @classmethod
    def begin(cls, place: TrialPlace) -> TrialWriter:
        """Begin the trial's next start, with all that is known of it; raises StorageError and RunError."""
        storage = Storage(place.storage)
        number, found = claim(storage, place, lambda progress: progress)
        return cls(storage, place, place.keys.start(number), found.document, found.progress)

    @classmethod
    def join(cls, place: TrialPlace, start: int) -> TrialWriter:
        """Write as, or read beside, the start of that number, which somebody has claimed for a group of processes."""
        storage = Storage(place.storage)
        keys = place.keys.start(start)
        content = storage.get(keys.progress)
        if content is None:
            raise RunError(f"{keys.progress} is missing: nobody has begun this start")
        document = _taken(storage, place).document
        return cls(storage, place, keys, document, _whole(Progress, keys.progress, content))

    def spec(self) -> TrainSpec:
        """The trial's complete spec."""
        return Trial(self._place.trial, self._document, self._progress).spec()

    @property
    def number(self) -> int:
        """The trial's."""
        return self._place.trial

    @property
    def epochs_wanted(self) -> int:
        """The epochs that its training has in all."""
        return self._progress.epochs_wanted

    def epochs_done(self) -> int:
        """The last epoch that is finished."""
        return self._progress.epochs_done

    @property
    def state(self) -> TrialState:
        """The state it is in."""
        return self._progress.state

    @property
    def checkpoint(self) -> Path:
        """Where its training has its checkpoint on this machine."""
        return self._scratch.folder / "checkpoint.safetensors"

    def fetch_checkpoint(self) -> str:
        """Bring the newest checkpoint that is whole, if there is one, to this machine.

        Returns what is to be told if it is not the newest one. Raises ProcessLostError if another process went on with
        the trial, and has removed it.
        """
        progress, content = newest_readable(self._storage, self._progress)
        if content is not None:
            self._scratch.write(self.checkpoint.name, content)
        if progress is self._progress:
            return ""
        lost = self._progress.checkpoint
        if not self._is_newest() or _newest_start(self._storage, self._keys.trial) != self._keys.number:
            raise ProcessLostError(f"the checkpoint {lost} is gone: another process went on with trial {self.number}")
        self._unreadable = {saved.key for saved in self._progress.checkpoints if saved not in progress.checkpoints}
        # Every process of a group finds the same; the one that trains on writes it down with what comes next.
        self._progress = progress
        goes_on = f"goes on from step {progress.checkpoint_step:,}" if content is not None else "begins anew"
        return f"trial {self.number} {goes_on}: {lost} is damaged"

    def fetch_warm_start(self) -> Path:
        """Bring the weights that the training begins with, of a spec that has some, to this machine."""
        key = RunKeys(self._place.run).warm_start
        content = self._storage.get(key)
        if content is None:
            raise CheckpointError(f"{key} is missing: this is no whole run")
        return self._scratch.write("warm_start.safetensors", content)

    @property
    def images(self) -> InStorage | None:
        """Where the images are that were sent along with the run, if they were."""
        stored = run_document(self._place.storage, self._place.run).data
        return (
            None
            if stored is None
            else InStorage(self._storage, stored, in_lines("fetching images", partial(print, flush=True)))
        )

    def record_epoch(self, epoch: Epoch) -> None:
        """Write down a finished epoch, in the place of later ones that a resumed trial runs again."""
        earlier = tuple(each for each in self._progress.epochs if each.epoch < epoch.epoch)
        self._change(epochs=(*earlier, EpochRecord(**vars(epoch))))

    def record_pace(self, pace: Pace) -> None:
        """Write down how far the training is."""
        self._change(pace=PaceRecord(**vars(pace)))

    def record_picture(self, epoch: int, picture: Image, *, keeps: Callable[[int], bool]) -> None:
        """Keep what its model made after an epoch, and of earlier pictures those of the epochs that `keeps` names.

        Those of later epochs go, as a resumed trial runs these again.
        """
        content = io.BytesIO()
        picture.save(content, format="PNG")
        key = self._keys.picture(epoch)
        kept = {number: each for number, each in self._progress.pictures.items() if number < epoch and keeps(number)}
        dropped = set(self._progress.pictures.values()) - set(kept.values()) - {key}
        self._courier.put(key, content.getvalue())
        self._change(pictures={**kept, epoch: key})
        for each in dropped:
            self._courier.delete(each)

    def record_checkpoint(self, step: int, epochs: int) -> None:
        """Have the checkpoint kept that the training, of which `epochs` are judged, has just written at `checkpoint`.

        Of later epochs, which a lost start has shown and this one runs again, it does not hold the weights.
        """
        key = self._keys.checkpoint(step)
        saved = CheckpointRecord(key=key, step=step, epochs=epochs, crc32=checksum(self.checkpoint))
        # A second name for the same file: the next checkpoint takes the first name, and leaves this one as it is.
        beside = self._scratch.folder / f"saved-{next(self._saves)}"
        os.link(self.checkpoint, beside)
        # Two are kept: who goes on with this trial may just have read which is the newest, or that may be torn.
        kept = (saved, *(each for each in self._progress.checkpoints[:1] if each.key != key))
        obsolete = {each.key for each in self._progress.checkpoints} | self._unreadable
        self._unreadable = set()
        self._courier.put(key, beside)
        judged = tuple(each for each in self._progress.epochs if each.epoch <= epochs)
        self._change(epochs=judged, checkpoints=kept)
        for each in sorted(obsolete - {each.key for each in kept}):
            self._courier.delete(each)

    def record_failure(self, error: TrainingError) -> None:
        """Let the actor that waits for this trial's processes know why they ended; the first to say so counts."""
        failure = Progress(state="failed", reason=str(error), cause=error.cause, epochs_wanted=self.epochs_wanted)
        self._storage.create(self._keys.failure, dump(failure))

    def set_state(self, state: TrialState, reason: str = "", cause: Cause = "error") -> None:
        """Write the state it is in, and all that was recorded before; `cause` is a failure's (raygen.errors.Cause)."""
        self.record_state(state, reason, cause)
        self._courier.flush()

    def record_state(self, state: TrialState, reason: str = "", cause: Cause = "error") -> None:
        """Have the state written that it is in, like all else that is recorded."""
        self._change(state=state, reason=reason, cause=cause)

    def should_stop(self) -> bool:
        """Whether somebody wants this trial, or its whole run, to stop; as it was at the last look."""
        return self._is_stopped

    def close(self) -> None:
        """End its threads once all is written; raises StorageError if the storage stays away."""
        try:
            self._courier.flush()
        finally:
            self._courier.close()
            self._lookout.close()
            self._scratch.close()

    def _change(self, **updates: Any) -> None:
        self._progress = progress = self._progress.model_copy(update=updates)
        # As it is now: what it names has been given to the courier before it.
        self._courier.put(self._keys.progress, lambda: dump(progress))

    def _look(self) -> None:
        stops = {entry.key for entry in self._storage.list(RunKeys(self._place.run).stops)}
        self._is_stopped = bool(stops & {self._keys.trial.attempt.stop, self._keys.stop})

    def _is_newest(self) -> bool:
        """Whether nobody has gone on with the trial up to now from what this start has written."""
        self._look()
        return not self._is_stopped


class AttemptWatch:
    """Looks in a thread whether the attempt that a trial belongs to is to stop."""

    def __init__(self, storage: Storage, place: TrialPlace) -> None:
        self._storage = storage
        self._key = place.keys.attempt.stop
        self._is_stopped = False
        self._look()
        self._lookout = Lookout(storage, self._look)

    @property
    def every_s(self) -> float:
        """Seconds between two looks."""
        return self._lookout.every_s

    def should_stop(self) -> bool:
        """Whether somebody wants the run to stop, as it was at the last look."""
        return self._is_stopped

    def close(self) -> None:
        """Look no more."""
        self._lookout.close()

    def _look(self) -> None:
        self._is_stopped = self._storage.entry(self._key) is not None


def claim(storage: Storage, place: TrialPlace, change: Callable[[Progress], Progress]) -> tuple[int, Taken]:
    """Begin the trial's next start, with all that is known of it changed; returns its number.

    Raises RunError if there is no such trial.
    """
    while True:
        taken = _taken(storage, place)
        number = _newest_start(storage, place.keys)
        before = progress_of(storage, place, number, taken)
        progress = change(before)
        if storage.create(place.keys.start(number + 1).progress, dump(progress)):
            if number and before.state == "running":
                # Whatever is left of it ends as soon as it looks.
                storage.create(place.keys.start(number).stop, b"")
            # What the start before wrote while this one began counts too.
            if (after := change(progress_of(storage, place, number, taken))) != progress:
                storage.put(place.keys.start(number + 1).progress, dump(after))
            return number + 1, Taken(document=taken.document, progress=after)


def progress_of(storage: Storage, place: TrialPlace, start: int, taken: Taken) -> Progress:
    """What a start has written; of one that is not there (0) what the attempt found when it began."""

    def written(number: int) -> Progress | None:
        key = place.keys.start(number).progress
        content = storage.get(key)
        if content is None:
            raise RunError(f"{key} is missing: {place.run} is no whole run")
        return parse_whole(Progress, key, content)

    return newest_whole(map(written, range(start, 0, -1)), taken.progress, lambda key: storage.entry(key) is not None)


def newest_progress(storage: Storage, place: TrialPlace) -> Progress:
    """How far the trial is."""
    return progress_of(storage, place, _newest_start(storage, place.keys), _taken(storage, place))


def failure_of(storage: Storage, place: TrialPlace, start: int) -> JobFailedError | None:
    """Why the processes of a start ended, if one of them wrote it down."""
    key = place.keys.start(start).failure
    content = storage.get(key)
    if content is None:
        return None
    written = parse_whole(Progress, key, content)
    if written is None:
        return None
    failure = JobFailedError(written.reason)
    failure.cause = written.cause
    return failure


def ask_to_stop(storage: Storage, place: TrialPlace, start: int) -> None:
    """Let the processes of one start end at their next sync."""
    storage.create(place.keys.start(start).stop, b"")


def _newest_start(storage: Storage, keys: TrialKeys) -> int:
    numbers = [int(found[3]) for entry in storage.list(keys.folder) if (found := layout.START.search(entry.key))]
    return max(numbers, default=0)


def _taken(storage: Storage, place: TrialPlace) -> Taken:
    """The trial as it was when this attempt made it, or began."""
    content = storage.get(place.keys.document)
    if content is not None:
        document = _whole(TrialDocument, place.keys.document, content)
        return Taken(document=document, progress=Progress(epochs_wanted=document.spec["training"]["epochs"]))
    found = _trials_of_attempt(place.storage, place.run, place.attempt).get(place.trial)
    if found is None:
        raise RunError(f"{place.run} has no trial {place.trial}")
    return found


@lru_cache(maxsize=4)
def _trials_of_attempt(storage: str, run: str, attempt: int) -> Mapping[int, Taken]:
    """The trials that an attempt goes on with, read once by each process."""
    key = RunKeys(run).attempt(attempt).document
    content = Storage(storage).get(key)
    if content is None:
        raise RunError(f"{key} is missing: {run} is no whole run")
    return _whole(AttemptDocument, key, content).trials


def _whole(model: type[AnyDocument], key: str, content: bytes) -> AnyDocument:
    """A document of this attempt; raises ProcessLostError if it is torn, as another attempt goes on without it."""
    document = parse_whole(model, key, content)
    if document is None:
        raise ProcessLostError(f"{key} was never written whole")
    return document


@lru_cache(maxsize=4)
def run_document(storage: str, run: str) -> RunDocument:
    """What was asked, read once by each process."""
    key = RunKeys(run).document
    content = Storage(storage).get(key)
    if content is None:
        raise RunError(f"{key} is missing: {run} is no whole run")
    return parse(RunDocument, key, content)
