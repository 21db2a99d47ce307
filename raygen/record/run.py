"""A run by its name: made, found, looked at, asked for something, removed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen.data.stored import InStorage
from raygen.errors import RunError, StorageError
from raygen.record import ranking
from raygen.record.documents import ON_REQUEST, AttemptDocument, RequestDocument, RunDocument, dump, parse_whole
from raygen.record.layout import RUN_DOCUMENT, RunKeys
from raygen.record.reading import Reader
from raygen.record.summary import summary
from raygen.record.view import TrialRecord, View
from raygen.storage import Storage

if TYPE_CHECKING:
    from raygen.data.stored import StoredData
    from raygen.plan import Plan
    from raygen.spec import TrainSpec

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a run may be called: its name begins keys, and is part of a submission's on the cluster."""

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")

WEIGHTS, SPEC, METRICS, PICTURE = "model.safetensors", "spec.json", "metrics.json", "samples.png"
"""The files of a best model."""


class Run:
    """A run in a storage."""

    def __init__(self, storage: Storage, name: str) -> None:
        """Nothing is read yet."""
        self.storage = storage
        self.name = name
        self._keys = RunKeys(name)
        self._reader = Reader(storage, name)

    @classmethod
    def create(
        cls,
        storage: Storage,
        kind: str,
        spec: TrainSpec,
        plan: Plan,
        direction: str,
        *,
        name: str | None = None,
        is_taken: Callable[[str], bool] = lambda name: False,
        warm_weights: bytes | None = None,
        data: StoredData | None = None,
    ) -> Run:
        """A new run in `storage`, called `name` or after model, data and time, by a name that is not `is_taken`.

        `warm_weights` is the file that the spec's warm start, if it has one, is the digest of; `data` tells where the
        images are stored that were sent along. Raises RunError if the name is taken or no plain name, StorageError if
        the storage cannot be written.
        """
        now = datetime.now(UTC)
        check_name(name)
        source = NOT_IN_NAMES.sub("-", Path(spec.data.source).stem.lower())
        document = RunDocument.model_validate(
            {
                "kind": kind,
                "objective": spec.evaluation.objective,
                "direction": direction,
                "created_at": now.replace(microsecond=0),
                "token": secrets.token_hex(8),
                "plan": plan,
                "spec": spec.model_dump(mode="json"),
                "data": data,
            }
        )
        made_up = _candidates(f"{spec.model.name}-{source}-{now.astimezone():%Y%m%d-%H%M%S}", is_taken)
        run = _first_free(storage, name, made_up, document)
        if warm_weights is not None:
            try:
                storage.put(run._keys.warm_start, warm_weights)
            except StorageError:
                with suppress(StorageError):
                    run.remove()
                raise
        return run

    @classmethod
    def named(cls, name: str, storage: Storage) -> Run | None:
        """The run of exactly that name; None if there is none."""
        is_there = NAME.fullmatch(name) and storage.entry(RunKeys(name).document) is not None
        return cls(storage, name) if is_there else None

    @classmethod
    def open(cls, name: str, storage: Storage) -> Run:
        """The run of that name or unambiguous beginning of a name; raises RunError if there is none."""
        if not NAME.fullmatch(name):
            raise RunError(_no_name(name))
        if run := cls.named(name, storage):
            return run
        matches = [
            each
            for each in storage.children()
            if each.startswith(name) and storage.entry(RunKeys(each).document) is not None
        ]
        if len(matches) == 1:
            return cls(storage, matches[0])
        if matches:
            raise RunError(f"{name!r} begins the names of several runs: {', '.join(matches)}")
        raise RunError(f"there is no run {name!r} in {storage.name}; `raygen ls` lists those there are")

    @property
    def address(self) -> str:
        """The run in a few words: its storage's address, and its name."""
        return f"{self.storage.name.rstrip('/')}/{self.name}"

    def is_there(self) -> bool:
        """Whether there is such a run; raises StorageError if the storage is away."""
        return self.storage.entry(self._keys.document) is not None

    def look(self) -> View:
        """All that is known of it now; raises RunError if it is damaged, StorageError if the storage is away."""
        return self._reader.look()

    @property
    def images(self) -> InStorage | None:
        """Where its images are, if they were sent along."""
        document = self.look().document
        return None if document.data is None else InStorage(self.storage, document.data)

    def records(self) -> list[TrialRecord]:
        """What is known of every trial, the better first."""
        return ranking.records(self.look())

    def summary(self) -> dict[str, Any]:
        """The result as plain JSON: state, trials with the best first, and what is known of the best models."""
        return summary(self.look())

    def read(self, key: str) -> bytes | None:
        """A picture or another content that a document names; None if it has gone meanwhile."""
        return self.storage.get(key)

    def best_file(self, name: str, place: int = 1) -> bytes:
        """A file of the best model in that place; raises RunError if the run has none (yet)."""
        key = self.best_key(name, place)
        content = self.storage.get(key)
        if content is None:
            raise RunError(f"{key} is missing: {self.name} is no whole run")
        return content

    def best_files(self, place: int = 1) -> dict[str, bytes]:
        """All files of the best model in that place by their names; raises RunError if the run has none (yet)."""
        folder = self._best_folder(place)
        found = {entry.key.rpartition("/")[2]: self.storage.get(entry.key) for entry in self.storage.list(folder)}
        return {name: content for name, content in found.items() if content is not None}

    def put_beside_best(self, name: str, content: bytes, place: int = 1) -> None:
        """Keep another file beside the best model in that place; raises RunError if the run has none (yet)."""
        self.storage.put(self.best_key(name, place), content)

    def best_key(self, name: str, place: int = 1) -> str:
        """The key of a file of the best model in that place; raises RunError if the run has none (yet)."""
        return f"{self._best_folder(place)}/{name}"

    def _best_folder(self, place: int) -> str:
        view = self.look()
        if view.result is None or place > len(view.result.folders):
            raise RunError(f"{self.name} has no best model {place} (state: {view.status.state})")
        return view.result.folders[place - 1]

    def request(self, *, reopens: bool, spec: TrainSpec | None = None) -> None:
        """Write down for the next attempt that failed trials go on, or that more is wanted by another spec."""
        document = RequestDocument(reopens=reopens, spec=None if spec is None else spec.model_dump(mode="json"))
        number = self.look().requests + 1
        while not self.storage.create(self._keys.request(number), dump(document)):
            number += 1

    def ask_to_stop(self, attempt: int, why: str = ON_REQUEST) -> None:
        """Let every trial of an attempt end soon, keeping what was trained; `why`, in a few words, is told of it."""
        self.storage.create(self._keys.attempt(attempt).stop, why.encode())

    def is_stopping(self, attempt: int) -> bool:
        """Whether the process of an attempt has seen that it is to stop, and writes its checkpoints since."""
        return self.storage.entry(self._keys.attempt(attempt).stopping) is not None

    def seal(self, attempt: int) -> bool:
        """Keep an attempt that has not begun from ever beginning; False if it has begun.

        Raises RunError if it cannot be told which.
        """
        key = self._keys.attempt(attempt).document
        if self.storage.create(key, dump(AttemptDocument(is_sealed=True))):
            return True
        content = self.storage.get(key)
        if content is None:
            return False
        document = parse_whole(AttemptDocument, key, content)
        return document is None or document.is_sealed

    def process(self, attempt: int) -> str:
        """What runs an attempt that has begun, for people; raises RunError if that cannot be read."""
        key = self._keys.attempt(attempt).document
        content = self.storage.get(key)
        if content is None:
            raise RunError(f"{key} is missing: {self.name} is no whole run")
        document = parse_whole(AttemptDocument, key, content)
        return "a process that is not known" if document is None else document.process

    def owner_uid(self) -> int | None:
        """The number of the user who has made it; None if it has gone, or is in a bucket, which does not tell."""
        if self.storage.folder is None:
            return None
        try:
            return (self.storage.folder / self.name).stat().st_uid
        except OSError:
            return None

    def size_bytes(self) -> int:
        """What all that was written of it takes."""
        found = [*self.storage.list(self.name), *self.storage.partials(self.name)]
        return sum(entry.size_bytes for entry in found)

    def remove(self) -> None:
        """Remove all that was written of it; what names it goes last, so it can be removed again if that fails."""
        others = [entry.key for entry in self.storage.list(self.name) if entry.key != self._keys.document]
        self.storage.delete(others)
        self.storage.delete_all(self.name)


def check_name(name: str | None) -> None:
    """Raise RunError unless a run may be called so; None is for a name that is made up."""
    if name is not None and not NAME.fullmatch(name):
        raise RunError(f"--name {name!r}: use letters, digits, '.', '_' and '-', and begin with a letter or digit")


def is_run_folder(folder: Path) -> bool:
    """Whether a folder of a storage on this machine is one of its runs."""
    return (folder / RUN_DOCUMENT).is_file()


def _no_name(given: str) -> str:
    """What to type instead of something that is no name of a run."""
    folder = Path(given).expanduser().absolute()
    if is_run_folder(folder):
        return f"{given} is the folder of a run; type its name: {folder.name} --storage {folder.parent}"
    return f"{given!r} is no name of a run; `raygen ls` lists those there are"


def _first_free(storage: Storage, name: str | None, made_up: Iterator[str], document: RunDocument) -> Run:
    """The run of the first name that nobody has taken; raises RunError if a name that was asked for is taken."""
    content = dump(document)
    for candidate in made_up if name is None else [name]:
        key = RunKeys(candidate).document
        # A bucket that was asked again as it gave no answer says that somebody was faster: this process.
        if storage.create(key, content) or storage.get(key) == content:
            return Run(storage, candidate)
    raise RunError(f"there is a run {name!r} in {storage.name} already; choose another --name")


def _candidates(name: str, is_taken: Callable[[str], bool]) -> Iterator[str]:
    candidates = chain([name], (f"{name}-{number}" for number in count(2)))
    return (candidate for candidate in candidates if not is_taken(candidate))
