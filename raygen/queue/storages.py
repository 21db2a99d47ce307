"""The storages of a cluster's jobs, asked so that one which does not answer keeps nobody waiting.

Each question is asked by a thread of its own. All that a look asks shares one second of waiting; an answer that comes
later is there at the next look. Until then that storage is asked nothing else but whether it is there.

A storage is *silent* while an answer is due: it may be slow. It is *away* if it says that it cannot be used (missing,
closed, full, without its mark) or has been silent for long; only then it may be what ended an attempt. It is there if
it has its mark: a folder whose disk is not mounted is empty, and its runs were not deleted. One with little room left
is there, and what runs in it goes on; no job starts, which would train for nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from raygen.errors import RaygenError, RunError, StorageError, StorageSilentError
from raygen.record.run import Run
from raygen.storage import MARK, Storage
from raygen.storage.reason import FULL

SILENCE_S = 1.0
"""How long a look waits for the answers of storages."""

QUICK_S = 0.1
"""How long it waits for each answer even so, as those of storages that are well come within that."""

LONG_SILENCE_S = 10.0
"""How long a storage that does not say whether it is there counts as slow, and not as away."""

CHECK_EVERY_S = 5.0
BUCKET_CHECK_EVERY_S = 30.0
"""How long a storage counts as well that was well; requests to a bucket are paid for."""

LEAST_ROOM_BYTES = 64 * 2**20
"""The room in a folder with which jobs start: for a checkpoint or two, and what is written beside them."""

MOST_ROOM_BYTES = 16 * 2**30
"""The room that is waited for at most."""

FORGOTTEN_AFTER_S = 300.0
"""How long an answer is kept for whoever asked."""

Answer = TypeVar("Answer")

CHECK = "check"
"""The question whether a storage is there."""

logger = logging.getLogger("raygen.dispatcher")


class Storages:
    """What one dispatcher knows of storages, by their addresses."""

    def __init__(self) -> None:
        self._questions: dict[tuple[str, Hashable], _Question] = {}
        self._well_until: dict[str, float] = {}  # those that need not be looked at until then
        self._away_at: dict[str, float] = {}  # when a storage was away last
        self._patience_s = SILENCE_S  # what is left of it in this look
        self._wanted_bytes: dict[str, int] = {}  # the room that those need in which one had too little
        self._short: dict[str, str] = {}
        self.problems: Mapping[str, str] = {}
        """What is wrong with storages, as the last look has found."""

    def check(self, runs: Mapping[str, Sequence[str]]) -> None:
        """Find out what is wrong with the storages of these runs, unless that was found out a moment ago."""
        self._patience_s = SILENCE_S
        for address, names in runs.items():
            if self._is_due(address):
                self._begin(address, CHECK, partial(_check, names=names))
        found = {address: self._problem(address) for address in runs}
        self.problems = {address: problem for address, problem in found.items() if problem}
        self._short = {address: problem for address, problem in self._short.items() if address in runs}
        late = time.monotonic() - FORGOTTEN_AFTER_S
        self._questions = {key: each for key, each in self._questions.items() if each.waits or each.asked_at > late}

    def was_away_within(self, address: str, seconds: float) -> bool:
        """Whether a storage was away within the last so many seconds, or may have been."""
        return time.monotonic() - self._away_at.get(address, float("-inf")) < seconds + BUCKET_CHECK_EVERY_S

    @property
    def closed(self) -> Mapping[str, str]:
        """What is wrong with storages in which no job can start: the problems, and too little room."""
        return {**self._short, **self.problems}

    def ran_full(self, address: str, room_bytes: int | None) -> None:
        """Have no job start in a storage, in which so much room was too little for one, until it has twice as much."""
        if room_bytes is not None:
            self._wanted_bytes[address] = min(max(2 * room_bytes, LEAST_ROOM_BYTES), MOST_ROOM_BYTES)
            self._see_room(address, room_bytes)

    def ask(self, address: str, about: Hashable, question: Callable[[Storage], Answer]) -> Answer:
        """Ask a storage that is there, and raise what the question raises; StorageError if it is away.

        Raises StorageSilentError if there is no answer yet: who asks the same again hears the answer that came
        meanwhile. Raises RunError for what nobody expected: that is the fault of one run.
        """
        if address in self.problems:
            raise StorageError(self.problems[address])
        try:
            self._begin(address, about, partial(_answered, question=question))
            answer: Answer = self._answer(address, about)
            return answer
        except StorageSilentError:
            self._well_until.pop(address, None)
            raise
        except StorageError:
            self._well_until.pop(address, None)
            self._away_at[address] = time.monotonic()
            raise

    def _is_due(self, address: str) -> bool:
        """Whether a storage is to be asked if it is there; only what is well is not asked again at once."""
        return time.monotonic() >= self._well_until.get(address, float("-inf"))

    def _problem(self, address: str) -> str:
        """What is wrong with a storage, which was asked if that was due; empty if nothing is."""
        if (address, CHECK) not in self._questions:
            return ""
        try:
            every_s, room_bytes = self._answer(address, CHECK)
        except StorageSilentError as error:
            if self._questions[address, CHECK].age_s > LONG_SILENCE_S:
                self._away_at[address] = time.monotonic()
            return str(error)
        except RaygenError as error:
            self._away_at[address] = time.monotonic()
            return str(error)
        self._well_until[address] = time.monotonic() + every_s
        self._see_room(address, room_bytes)
        return ""

    def _see_room(self, address: str, room_bytes: int | None) -> None:
        """Note whether it is enough; too little is looked at again at once."""
        wanted_bytes = self._wanted_bytes.get(address, LEAST_ROOM_BYTES)
        self._short.pop(address, None)
        if room_bytes is not None and room_bytes < wanted_bytes:
            # Not how much is left: what changes from look to look would be told at each.
            wanted = f"{wanted_bytes / 1e6:,.0f} MB"
            self._short[address] = f"{address} has less than {wanted} left, and no job starts with that; {FULL}"
            self._well_until.pop(address, None)

    def _begin(self, address: str, about: Hashable, question: Callable[[Storage], Any]) -> None:
        """Ask a storage something, unless it was asked the same before; raises StorageSilentError if it is busy."""
        key = address, about
        if key in self._questions:
            return
        others = ((place, other) for (place, other), asked in self._questions.items() if asked.waits)
        if about != CHECK and any(place == address and other != CHECK for place, other in others):
            raise StorageSilentError(f"{address} does not answer")
        self._questions[key] = _Question(lambda: question(Storage(address)))

    def _answer(self, address: str, about: Hashable) -> Any:
        asked = self._questions[address, about]
        began_at = time.monotonic()
        has_answer = asked.has_answer(within_s=max(self._patience_s, QUICK_S))
        self._patience_s -= max(time.monotonic() - began_at - QUICK_S, 0.0)
        if not has_answer:
            raise StorageSilentError(f"{address} does not answer")
        del self._questions[address, about]
        return asked.answer()


class _Question:
    """Something that a thread finds out, however long that takes: it ends with the process at the latest."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.asked_at = time.monotonic()
        self._future: Future[Any] = Future()
        try:
            threading.Thread(target=self._find_out, args=(ask,), name="storage", daemon=True).start()
        except RuntimeError as error:  # the machine has too many
            self._future.set_exception(StorageError(f"storages cannot be asked: {error}"))

    @property
    def waits(self) -> bool:
        """Whether there is no answer yet."""
        return not self._future.done()

    @property
    def age_s(self) -> float:
        """How long ago it was asked."""
        return time.monotonic() - self.asked_at

    def has_answer(self, *, within_s: float) -> bool:
        """Whether there is an answer, or one comes that soon and before the question counts as not answered."""
        wait([self._future], timeout=max(min(SILENCE_S - self.age_s, within_s), 0.0))
        return not self.waits

    def answer(self) -> Any:
        """What was found out, or what was raised."""
        return self._future.result()

    def _find_out(self, ask: Callable[[], Any]) -> None:
        try:
            self._future.set_result(ask())
        except BaseException as error:  # noqa: BLE001 – it is raised to whoever asked
            self._future.set_exception(error)


def check_kept(storage: Storage, names: Sequence[str]) -> None:
    """Raise StorageError unless a storage that should have these runs is the one that has them.

    An empty folder on which a disk was mounted is not: whoever begins it anew takes the others' runs from them.
    """
    if not storage.is_marked():
        # Nobody has marked it yet, or it is not the one that was.
        if not any(Run(storage, name).is_there() for name in names):
            raise StorageError(_lost(storage))
        storage.mark()


def _check(storage: Storage, names: Sequence[str]) -> tuple[float, int | None]:
    """How long it holds that a storage of these runs is there and can be written, and its room; StorageError."""
    with _explained(StorageError):
        check_kept(storage, names)
        storage.check()
        return CHECK_EVERY_S if storage.folder is not None else BUCKET_CHECK_EVERY_S, storage.room_bytes()


def _answered(storage: Storage, question: Callable[[Storage], Answer]) -> Answer:
    """What a storage answers that is there before and after; RunError for an error that nobody expected."""
    _check_mark(storage)
    try:
        with _explained(RunError):
            return question(storage)
    finally:
        _check_mark(storage)


@contextmanager
def _explained(kind: type[RaygenError]) -> Iterator[None]:
    """Raise what nobody expected as the error of one run, or one storage: others' jobs go on without it."""
    try:
        yield
    except RaygenError:
        raise
    except Exception as error:
        logger.exception("an error in Raygen itself")
        raise kind(f"an error in Raygen itself ({type(error).__name__}: {error})") from error


def _check_mark(storage: Storage) -> None:
    with _explained(StorageError):
        is_marked = storage.is_marked()
    if not is_marked:
        raise StorageError(_lost(storage))


def _lost(storage: Storage) -> str:
    if storage.folder is not None and not storage.folder.is_dir():
        what = f"there is no folder {storage.folder}"
    else:
        what = f"{storage.name} has lost its runs and its mark"
    return f"{what}; is its disk mounted? If it was emptied on purpose, make the file {MARK} in it"
