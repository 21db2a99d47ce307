"""Short trainings side by side on one device, to measure how fast several are together and what memory each holds.

Each is a process of its own, as trials are: `python -m raygen.training.rehearsal FOLDER`. It reads a line, what to
train; trains for a while, so that everything is set up that has to be once; says `ready`; and waits for another line.
When all have that, they train for so many seconds and print what that came to. What they write lies in the folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from raygen.data.stored import InStorage, StoredData
from raygen.errors import RehearsalError
from raygen.packing import Measured
from raygen.spec import TrainSpec
from raygen.storage import Storage

if TYPE_CHECKING:
    from raygen.training.loop import Epoch, Pace

READY = "ready"

CODE = (str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")]))
"""Where the processes find what this one has imported: a cluster may have been sent it."""

SET_UP_TIMEOUT_S = 300.0
"""Seconds that processes have to begin, to have their images and to train for a while; some networks are compiled."""

ENDING_TIMEOUT_S = 60.0
"""Seconds that they have beyond those they are to train: one step, or the judgement of an epoch, may be on its way."""


class Wanted(BaseModel):
    """What a process is to train, on which device and with how many threads, and with how many others it shares that.

    It trains `warm_up_s` seconds before it is ready, and is then measured for `span_s`.
    """

    model_config = ConfigDict(frozen=True)

    spec: TrainSpec
    device: str
    threads: int
    at_once: int
    warm_up_s: float
    span_s: float
    storage: str | None
    """Where the images are that were sent along with the run, if they were, as `images` says."""
    images: StoredData | None


class Found(BaseModel):
    """What a process found: images per second, its share of the memory held on the device, and all of that."""

    model_config = ConfigDict(frozen=True)

    images_per_s: float
    trained_s: float
    held_bytes: int
    room_bytes: int


def measure(wanted: Wanted) -> Measured:
    """Train in `wanted.at_once` processes at once, which end with this whatever happens.

    Raises RehearsalError if one fails or takes too long.
    """
    with contextlib.ExitStack() as stack:
        # A thread for each process waits for its lines; they end with the processes, which go first.
        waiting = stack.enter_context(ThreadPoolExecutor(wanted.at_once))
        processes = [stack.enter_context(_Process(wanted)) for _ in range(wanted.at_once)]
        for line in _lines(waiting, processes, timeout_s=SET_UP_TIMEOUT_S):
            if line != READY:
                raise RehearsalError(f"a process said {line!r} in the place of {READY!r}")
        for process in processes:
            process.say("go")
        lines = _lines(waiting, processes, timeout_s=wanted.span_s + ENDING_TIMEOUT_S)
        try:
            found = [Found.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise RehearsalError(f"a process said what nobody understands: {lines}") from error
    return Measured(
        images_per_s=sum(each.images_per_s for each in found),
        bytes_each=max(each.held_bytes for each in found),
        room_bytes=min(each.room_bytes for each in found),
    )


def _lines(waiting: ThreadPoolExecutor, processes: list[_Process], *, timeout_s: float) -> list[str]:
    """The next line of each; raises RehearsalError if one does not say any in time."""
    deadline = time.monotonic() + timeout_s
    futures: list[Future[str]] = [waiting.submit(process.line) for process in processes]
    try:
        return [future.result(timeout=max(deadline - time.monotonic(), 0)) for future in futures]
    except TimeoutError as error:
        raise RehearsalError(f"it took longer than {timeout_s:.0f} s") from error


class _Process:
    """One of the processes; it is killed at the end."""

    def __init__(self, wanted: Wanted) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="raygen-rehearsal-")
        self._errors = Path(self._folder.name) / "errors"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raygen.training.rehearsal", self._folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(CODE)},
            )
        self.say(wanted.model_dump_json())

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what it did not read any more
                stream.close()
        self._folder.cleanup()

    def say(self, line: str) -> None:
        """Write a line to it; what one that has ended does not read, its next line tells."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def line(self) -> str:
        """Its next line; raises RehearsalError with its last words if it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line:
            return line
        code = self._process.wait()
        words = [each for each in self._errors.read_text(errors="replace").splitlines() if each.strip()]
        raise RehearsalError(words[-1] if words else f"a process ended with exit code {code}")


class _Rehearsal:
    """What one process does with what it is told: it is asked at every sync of its training."""

    def __init__(self, wanted: Wanted, told: Callable[[], str], say: Callable[[str], None]) -> None:
        self._wanted, self._told, self._say = wanted, told, say
        self._began_at = time.monotonic()
        self._images = 0
        self._is_ready = self.is_over = False
        self._last_step = 0

    def begin_training(self) -> None:
        """The steps are counted from 0 again."""
        self._last_step = 0

    def hear(self, pace: Pace) -> None:
        """Learn how far the training is."""
        self._images += (pace.step - self._last_step) * self._wanted.spec.training.batch_size
        self._last_step = pace.step
        elapsed_s = time.monotonic() - self._began_at
        if not self._is_ready and elapsed_s >= self._wanted.warm_up_s:
            self._is_ready = True
            self._say(READY)
            if not self._told():
                sys.exit(1)  # whoever started it has gone
            self._began_at, self._images = time.monotonic(), 0
        elif self._is_ready and not self.is_over and elapsed_s >= self._wanted.span_s:
            self.is_over = True
            held, room = _memory(self._wanted.device, self._wanted.at_once)
            found = Found(images_per_s=self._images / elapsed_s, trained_s=elapsed_s, held_bytes=held, room_bytes=room)
            self._say(found.model_dump_json())


def _memory(device: str, at_once: int) -> tuple[int, int]:
    """Bytes that one of so many processes holds on the device, and all that it has for them, while all train.

    On a GPU what is used is shared out evenly: it has what CUDA, its libraries and recorded graphs take of it, which
    torch does not count, and whatever others of the machine hold there.
    """
    import psutil
    import torch

    if device == "cpu":
        held = psutil.Process().memory_info().rss
        return held, psutil.virtual_memory().available + at_once * held
    free, total = torch.cuda.mem_get_info(device)
    return max((total - free) // at_once, torch.cuda.max_memory_reserved(device)), total


def _trained(wanted: Wanted, rehearsal: _Rehearsal, folder: Path) -> Iterator[Epoch]:
    """Train again and again from the beginning until what was to be measured is; yields after each epoch."""
    import torch

    from raygen import data
    from raygen.training.distributed import Group
    from raygen.training.loop import fit

    torch.set_num_threads(wanted.threads)
    stored = None
    if wanted.storage is not None and wanted.images is not None:
        stored = InStorage(Storage(wanted.storage), wanted.images)
    # What goes wrong with a training is told by the search itself.
    spec = wanted.spec.with_settings({"health.enabled": False})
    dataset = data.load(spec.data, stored)
    device = torch.device(wanted.device)
    path = folder / "checkpoint.safetensors"
    while not rehearsal.is_over:
        rehearsal.begin_training()
        yield from fit(
            spec,
            dataset,
            path,
            group=Group(device=device, memory_share=1 / wanted.at_once),
            on_pace=rehearsal.hear,
            should_stop=lambda: rehearsal.is_over,
        )
        for left in folder.glob(f"{path.stem}*"):
            left.unlink()


def _say(answers: TextIO, line: str) -> None:
    print(line, file=answers, flush=True)


def main(folder: str) -> None:
    """Do what the first line of the standard input wants."""
    # Whatever else prints something prints it where errors go: each line that is said has a meaning.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        wanted = Wanted.model_validate_json(sys.stdin.readline())
        rehearsal = _Rehearsal(wanted, sys.stdin.readline, functools.partial(_say, answers))
        for _ in _trained(wanted, rehearsal, Path(folder)):
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
