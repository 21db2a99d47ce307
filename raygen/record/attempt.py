"""What the process that runs an attempt at a job writes about it."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from raygen.data.stored import InStorage
from raygen.errors import Cause, StorageError
from raygen.progress import in_lines
from raygen.record import layout, ranking
from raygen.record.checkpoints import newest, newest_readable
from raygen.record.courier import Courier
from raygen.record.documents import (
    ENDED,
    ON_REQUEST,
    AttemptDocument,
    Judgement,
    PackingDocument,
    Progress,
    Result,
    RunState,
    Status,
    Taken,
    TrialDocument,
    dump,
)
from raygen.record.layout import RunKeys
from raygen.record.liveness import BEAT_EVERY_S
from raygen.record.log import LogWriter
from raygen.record.lookout import Lookout
from raygen.record.reading import Reader
from raygen.record.trial import TrialPlace, claim
from raygen.record.view import Trial, View
from raygen.storage import Storage

if TYPE_CHECKING:
    from raygen.spec import TrainSpec

LONGEST_REASON = 200
"""Characters of what somebody says on stopping a run."""


class Attempt:
    """The process that runs an attempt: what it writes goes through a thread, but what others must see at once.

    It looks for a wish to stop in another one.
    """

    def __init__(self, reader: Reader, number: int) -> None:
        self.number = number
        self._reader = reader
        self._storage: Storage = reader.storage
        self._keys = reader.keys.attempt(number)
        self._is_stopped = False
        self._wants_stop = False
        self._has_answered = False
        beats = itertools.count()
        in_bucket = self._storage.folder is None
        self._courier = Courier(self._storage)
        self._lookout = Lookout(
            self._storage,
            self._look,
            beat=(lambda: self._storage.put(self._keys.alive, str(next(beats)).encode())) if in_bucket else None,
            beat_every_s=BEAT_EVERY_S,
        )
        self._log = LogWriter(self._keys, self._courier.put, self._courier.delete)
        self._status = Status(state="running")

    @classmethod
    def begin(cls, storage: Storage, run: str, number: int) -> Attempt | None:
        """Begin the attempt with all that is known of the run; None if it must not begin, or has begun already."""
        reader = Reader(storage, run)
        view = reader.look()
        if view.attempt >= number:
            return None
        if view.attempt:
            # Whatever is left of it ends as soon as it looks; before that nothing goes which the next look names.
            storage.create(reader.keys.attempt(view.attempt).stop, b"")
            view = reader.look()
        document = AttemptDocument(
            process=f"process {os.getpid()} on {socket.gethostname()}",
            token=secrets.token_hex(8),
            requests=view.requests,
            trials=_begun_with(view),
            result=view.result_key,
        )
        key, content = reader.keys.attempt(number).document, dump(document)
        # A bucket that was asked again as it gave no answer says that somebody was faster: this process.
        if not storage.create(key, content) and storage.get(key) != content:
            return None
        _remove_partials(storage, reader.keys)
        return cls(reader, number)

    def __getstate__(self) -> dict[str, Any]:
        """What Tune writes down of it beside its own state: both are never read, as the record is what counts."""
        return {"run": self.run, "number": self.number}

    @property
    def run(self) -> str:
        """The name of the run."""
        return self._reader.keys.name

    @property
    def storage(self) -> Storage:
        """Where the run is."""
        return self._storage

    def look(self) -> View:
        """All that is known of the run now."""
        return self._reader.look()

    @property
    def status(self) -> Status:
        """The state that was written last."""
        return self._status

    def set_status(self, state: RunState, reason: str = "", exit_code: int = 0, cause: Cause = "error") -> None:
        """Write the state that the run is in; `cause` is a failure's (raygen.errors.Cause)."""
        self._status = Status(state=state, reason=reason, exit_code=exit_code, cause=cause)
        self._storage.put(self._keys.status, dump(self._status))

    def add_to_log(self, line: bytes) -> None:
        """Add a line, with what ends it, to the run's log."""
        self._log.add(line)

    def should_stop(self) -> bool:
        """Whether somebody wants the run to stop; if the storage is away, as it was at the last look."""
        with contextlib.suppress(StorageError):
            self._look()
        return self.has_heard_stop()

    def has_heard_stop(self) -> bool:
        """The same as it was at the last look, which is never long ago, for who asks often."""
        return self._is_stopped or self._wants_stop

    def why_stopped(self) -> str:
        """Why somebody wants the run to stop, in a few words."""
        content = self._storage.get(self._keys.stop) or b""
        return content.decode("utf-8", errors="replace").partition("\n")[0][:LONGEST_REASON] or ON_REQUEST

    def ask_to_stop(self) -> None:
        """Let every trial end at its next sync, keeping what was trained; may be called by a signal's handler."""
        self._wants_stop = True

    def keep_packing(self, at_once: int, why: str) -> None:
        """Write down for later attempts how many trials share a GPU, unless it is known already."""
        self._storage.create(self._reader.keys.packing, dump(PackingDocument(at_once=at_once, why=why)))

    def place(self, trial: int) -> TrialPlace:
        """Where a trial's processes find it."""
        return TrialPlace(storage=self._storage.url, run=self.run, attempt=self.number, trial=trial)

    def new_trial(
        self, number: int, parameters: Mapping[str, Any], spec: TrainSpec, *, replicate_of: int | None = None
    ) -> Trial:
        """Make a trial."""
        document = TrialDocument(
            parameters=dict(parameters), spec=spec.model_dump(mode="json"), replicate_of=replicate_of
        )
        self._storage.create(self._keys.trial(number).document, dump(document))
        return Trial(number, document, Progress(epochs_wanted=spec.training.epochs))

    def add_replicates(self) -> None:
        """Make the trials that a search still needs to run its best configurations on as many fresh seeds."""
        view = self.look()
        first = max((trial.number for trial in view.trials), default=0) + 1
        for number, (original, seed) in enumerate(ranking.lacking_replicates(view), start=first):
            spec = original.spec().with_settings({"seed": seed})
            self.new_trial(number, original.parameters, spec, replicate_of=original.number)

    def change_trial(self, number: int, change: Callable[[Progress], Progress]) -> Trial:
        """Write something down about a trial whose processes have ended, in the place of all that they still write."""
        _, taken = claim(self._storage, self.place(number), change)
        return Trial(number, taken.document, taken.progress)

    def set_trial_state(self, number: int, state: RunState, reason: str = "", cause: Cause = "error") -> Trial:
        """Write the state that a trial is in, whose processes have ended."""
        return self.change_trial(
            number,
            lambda progress: progress.model_copy(update={"state": state, "reason": reason, "cause": cause}),
        )

    def promote(self, number: int) -> Trial:
        """Let a training that was stopped early go on, once."""
        return self.change_trial(
            number,
            lambda progress: progress.model_copy(
                update={"state": "interrupted", "reason": "promoted", "was_promoted": True}
            ),
        )

    def put_best(self, places: Sequence[tuple[dict[str, Any], Mapping[str, bytes]]]) -> None:
        """Keep the best models, the very best first: what is known of each, and its files by their names."""
        folders = [self._keys.best(place) for place in range(1, len(places) + 1)]
        for folder, (_, files) in zip(folders, places, strict=True):
            for name, content in files.items():
                self._storage.put(f"{folder}/{name}", content)
        result = Result(best=tuple(facts for facts, _ in places), folders=tuple(folders))
        self._storage.put(self._keys.result, dump(result))

    def images(self, view: View) -> InStorage | None:
        """Where the images are that were sent along with the run, if they were."""
        stored = view.document.data
        return (
            None
            if stored is None
            else InStorage(self._storage, stored, in_lines("fetching images", partial(print, flush=True)))
        )

    def checkpoint(self, trial: Trial) -> bytes:
        """The newest checkpoint of a trial that has one; raises CheckpointError if it is gone."""
        return newest(self._storage, trial.number, trial.progress)

    def settle_checkpoint(self, trial: Trial) -> str:
        """Let the newest checkpoint that is whole count for a trial that has ended.

        Returns what is to be told if that is not the newest one; a trial without any is lost, and begins anew in
        another attempt.
        """
        progress, content = newest_readable(self._storage, trial.progress)
        if progress is trial.progress:
            return ""
        told = f"its checkpoint {trial.progress.checkpoint} is damaged"
        if content is None:
            told += ", and there is no other"
            progress = progress.model_copy(update={"state": "failed", "reason": told, "cause": "lost"})
        else:
            told += f"; that of step {progress.checkpoint_step:,} counts"
        self.change_trial(trial.number, lambda before: progress)
        return f"trial {trial.number}: {told}"

    def record_judgement(self, number: int, judgement: Judgement) -> Trial:
        """Write down what a trial's best weights came to."""
        return self.change_trial(number, lambda progress: progress.model_copy(update={"judgement": judgement}))

    def close(self) -> None:
        """End its threads once the log is written; raises StorageError if the storage stays away."""
        try:
            self._courier.flush()
        finally:
            self._courier.close()
            self._lookout.close()

    def _look(self) -> None:
        if self._wants_stop and not self._is_stopped:
            self._storage.create(self._keys.stop, ON_REQUEST.encode())
        self._is_stopped = self._storage.entry(self._keys.stop) is not None
        if self._is_stopped and not self._has_answered:
            self._storage.create(self._keys.stopping, b"")
            self._has_answered = True


def _remove_partials(storage: Storage, keys: RunKeys) -> None:
    """Remove what processes of earlier attempts were writing of trials when they were killed.

    One that lives fails to write it, and nobody would read it. Elsewhere in the run others may be writing.
    """
    with contextlib.suppress(StorageError):  # it takes room, and is counted
        found = [entry.key for entry in storage.partials(keys.attempts)]
        storage.delete(key for key in found if layout.OF_TRIAL.search(key))


def _begun_with(view: View) -> dict[int, Taken]:
    """The trials as the attempt begins with them: those that were lost go on, and what was asked to."""
    reopens = any(request.reopens for request in view.unanswered)
    is_extended = any(request.spec for request in view.unanswered)
    epochs = view.spec_json["training"]["epochs"]
    taken = {}
    for trial in view.trials:
        progress = trial.progress
        if progress.state == "failed" and (reopens or progress.cause == "lost"):
            progress = progress.model_copy(update={"state": "interrupted"})
        elif progress.state == "finished" and is_extended and progress.epochs_done < epochs:
            update = {
                "state": "interrupted",
                "reason": "extended",
                "extended_from": progress.epochs_wanted,
                "epochs_wanted": epochs,
                "was_promoted": False,
            }
            progress = progress.model_copy(update=update)
        elif progress.state not in ENDED:
            progress = progress.model_copy(update={"state": "interrupted"})
        taken[trial.number] = Taken(document=trial.document, progress=progress)
    return taken
