"""Looks at a run again and again, and reads only what has changed since the last look."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Mapping
from typing import TypeVar

from filelock import FileLock
from pydantic import BaseModel

from raygen import versions
from raygen.errors import RunError, StorageError
from raygen.metrics import reported
from raygen.record import layout
from raygen.record.documents import (
    AttemptDocument,
    PackingDocument,
    Progress,
    RequestDocument,
    Result,
    RunDocument,
    Status,
    Taken,
    TrialDocument,
    newest_whole,
    parse_whole,
)
from raygen.record.layout import RunKeys
from raygen.record.view import Trial, View
from raygen.storage import Entry, Storage

AnyDocument = TypeVar("AnyDocument", bound=BaseModel)

WITHOUT_A_WORD = "its process ended without a word"
"""The reason of a run in a folder whose process no longer holds it, and did not say why."""

BEST_TRIALS = ("trial", "configuration")
"""What of the facts about a best model are numbers of trials."""

NO_REQUEST = RequestDocument(reopens=False)
"""What a torn request comes to."""


class Reader:
    """A run's documents as they were last read."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage = storage
        self.keys = RunKeys(name)
        self._read: dict[str, tuple[str, BaseModel | None]] = {}

    def look(self) -> View:
        """All that is known of the run now; raises RunError if there is no such run, or it is damaged."""
        listed = {entry.key: entry for entry in self.storage.list(self.keys.name)}
        run = self._document(RunDocument, self.keys.document, listed)
        if run is None:
            if self.storage.entry(self.keys.document) is not None:
                raise RunError(f"{self.keys.document} is damaged: it was never written whole")
            raise RunError(
                f"there is no run {self.keys.name!r} in {self.storage.name}; `raygen ls` lists those there are"
            )
        asked = {self.keys.document: run.spec}
        keys = [self.keys.request(number) for number in _numbers(layout.REQUEST, listed)]
        requests = [self._document(RequestDocument, key, listed) or NO_REQUEST for key in keys]
        asked |= {key: request.spec for key, request in zip(keys, requests, strict=True) if request.spec}
        key, spec = list(asked.items())[-1]
        if run.kind == "tune" and "search" not in spec:
            raise RunError(f"{key} is damaged: its spec is of one training, and the run is a search")
        number, attempt = self._newest_attempt(listed)
        trials, torn = self._trials(number, attempt, run.objective, listed)
        result_key, result = self._result(number, attempt, torn, listed)
        if result_key is not None and result is not None:
            _check_result(result_key, result, {trial.number for trial in trials}, run.objective)
        return View(
            name=self.keys.name,
            document=run,
            spec_json=versions.read_spec(spec),
            status=self._status(number, listed, result_key),
            attempt=number,
            requests=len(requests),
            unanswered=tuple(requests[attempt.requests :]),
            trials=tuple(trials),
            result=result,
            result_key=result_key,
            packing=self._document(PackingDocument, self.keys.packing, listed),
        )

    def _newest_attempt(self, listed: Mapping[str, Entry]) -> tuple[int, AttemptDocument]:
        """The newest attempt that has begun, and what it began with; 0 if none has."""
        for number in reversed(_numbers(layout.ATTEMPT, listed)):
            document = self._document(AttemptDocument, self.keys.attempt(number).document, listed)
            if document is not None and not document.is_sealed:
                return number, document
        return 0, AttemptDocument()

    def _status(self, attempt: int, listed: Mapping[str, Entry], result_key: str | None) -> Status:
        """How an attempt stands; one that has finished by its own words has left a result, or has to end again."""
        if attempt == 0:
            return Status(state="waiting")
        own = self.keys.attempt(attempt)
        status = self._document(Status, own.status, listed) or Status(state="running")
        if status.state == "finished" and own.result in listed and own.result != result_key:
            return Status(state="interrupted", reason=f"{own.result} was never written whole", exit_code=130)
        if status.state == "running" and self.storage.folder is not None and not is_locked(self.storage, self.keys):
            return Status(state="interrupted", reason=WITHOUT_A_WORD, exit_code=130)
        return status

    def _trials(
        self, number: int, attempt: AttemptDocument, objective: str, listed: Mapping[str, Entry]
    ) -> tuple[list[Trial], set[int]]:
        """The trials that count, and the numbers of those whose documents are torn."""
        own = self.keys.attempt(number)
        taken = dict(attempt.trials)
        for before in taken.values():
            _check_judged(own.document, before.progress, objective)
        starts: dict[int, list[int]] = {}
        torn: set[int] = set()
        for key in listed:
            if not key.startswith(f"{own.folder}/trials/"):
                continue
            if found := layout.TRIAL.search(key):
                document = self._document(TrialDocument, key, listed)
                if document is None:
                    torn.add(int(found[2]))
                    continue
                wanted = document.spec["training"]["epochs"]
                taken[int(found[2])] = Taken(document=document, progress=Progress(epochs_wanted=wanted))
            elif found := layout.START.search(key):
                starts.setdefault(int(found[2]), []).append(int(found[3]))
        for trial, numbers in starts.items():
            if trial in taken:
                keys = [own.trial(trial).start(number).progress for number in sorted(numbers, reverse=True)]
                progress = newest_whole(
                    (self._progress(key, objective, listed) for key in keys),
                    taken[trial].progress,
                    listed.__contains__,
                )
                taken[trial] = Taken(document=taken[trial].document, progress=progress)
        return [Trial(each, found.document, found.progress) for each, found in sorted(taken.items())], torn

    def _progress(self, key: str, objective: str, listed: Mapping[str, Entry]) -> Progress | None:
        progress = self._document(Progress, key, listed)
        if progress is not None:
            _check_judged(key, progress, objective)
        return progress

    def _result(
        self, number: int, attempt: AttemptDocument, torn: set[int], listed: Mapping[str, Entry]
    ) -> tuple[str | None, Result | None]:
        """The newest result, of no torn trial, with its key: the attempt's own, or the one that it began with."""
        own = self.keys.attempt(number).result
        if own not in listed and attempt.result is not None and attempt.result not in listed:
            raise RunError(f"{attempt.result} is missing: {self.keys.name} is no whole run")
        for key in filter(None, (own, attempt.result)):
            result = self._document(Result, key, listed)
            if result is not None and not _trials_of(result) & torn:
                return key, result
        return None, None

    def _document(self, model: type[AnyDocument], key: str, listed: Mapping[str, Entry]) -> AnyDocument | None:
        """A document as it is now; None if it was not there at this look, or is torn."""
        if key not in listed:
            return None
        version = listed[key].version
        if key in self._read and self._read[key][0] == version:
            document = self._read[key][1]
            assert document is None or isinstance(document, model)
            return document
        content = self.storage.get(key)
        parsed = None if content is None else parse_whole(model, key, content)
        self._read[key] = version, parsed
        return parsed


def _check_judged(key: str, progress: Progress, objective: str) -> None:
    """Raise RunError naming the key unless all that was judged was judged by the objective."""
    judged = [(objective, epoch.metrics) for epoch in progress.epochs]
    if progress.judgement is not None:
        judged.append((objective, progress.judgement.validation.metrics))
        if progress.judgement.test is not None:
            judged.append((reported(objective, "test"), progress.judgement.test.metrics))
    for name, values in judged:
        if name not in values:
            raise RunError(f"{key} is damaged: it has no {name} where one was judged by it")


def _trials_of(result: Result) -> set[int]:
    """The numbers of the trials that its best models are of."""
    return {facts[name] for facts in result.best for name in BEST_TRIALS}


def _check_result(key: str, result: Result, trials: set[int], objective: str) -> None:
    """Raise RunError naming the key unless its best models are of these trials, and were judged by the objective."""
    if not _trials_of(result) <= trials:
        raise RunError(f"{key} is damaged: it names a trial that there is none of")
    name = reported(objective, "test")
    if any(facts["test"] and name not in facts["test"]["metrics"] for facts in result.best):
        raise RunError(f"{key} is damaged: it has no {name} where one was judged by it")


def is_locked(storage: Storage, keys: RunKeys) -> bool:
    """Whether a process holds the run of a storage that is a folder; the system frees it however that process ends.

    Raises RunError if what should be the lock is something else, StorageError if it cannot be tried.
    """
    assert storage.folder is not None, "a bucket has no locks"
    try:
        with (storage.folder / keys.lock).open("rb") as file:  # shared: whoever may only read can ask too
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError as error:
        if not storage.folder.is_dir():
            raise StorageError(f"cannot lock {storage.name}/{keys.lock}: {error.strerror}") from error
    except BlockingIOError:
        return True
    except IsADirectoryError as error:
        raise RunError(f"{keys.lock} is damaged: it is a folder") from error
    except OSError as error:
        raise StorageError(f"cannot lock {storage.name}/{keys.lock}: {error.strerror}") from error
    return False


def lock(storage: Storage, keys: RunKeys) -> FileLock:
    """What the process that runs the job holds, of a storage that is a folder."""
    assert storage.folder is not None, "a bucket has no locks"
    return FileLock(storage.folder / keys.lock)


def _numbers(pattern: re.Pattern[str], listed: Mapping[str, Entry]) -> list[int]:
    return sorted(int(found[1]) for key in listed if (found := pattern.search(key)))
