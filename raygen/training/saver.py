"""When a checkpoint is written: on demand, and when enough training would be lost without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from raygen.training import checkpoint
from raygen.training.checkpoint import Progress, Trained
from raygen.training.distributed import Group


class Saver:
    """Writes checkpoints from rank 0, when something is new."""

    def __init__(
        self,
        path: Path,
        trained: Trained,
        progress: Progress,
        *,
        group: Group,
        every_s: float,
        steps_per_epoch: int,
        on_saved: Callable[[int, int], None],
    ) -> None:
        """Save what is trained and its progress, which both go on changing, to `path`, at most `every_s` apart.

        `on_saved` is told of each checkpoint, once it is written, the step and how many epochs were judged before it.
        """
        self._path = path
        self._on_saved = on_saved
        self._trained = trained
        self._progress = progress
        self._writes = group.rank == 0
        self._every_s = every_s
        self._steps_per_epoch = steps_per_epoch
        self._saved = self._reached()
        self._saved_at = time.monotonic()
        self._wanted = False

    def save(self) -> None:
        """Write a checkpoint, unless the last one holds all that was reached."""
        self._wanted = False
        reached = self._reached()
        if self._writes and reached != self._saved:
            checkpoint.save(self._path, self._trained, self._progress)
            self._saved = reached
            self._saved_at = time.monotonic()
            self._on_saved(*reached)

    def save_best(self) -> None:
        """Save even a training that cannot go on, so that its best weights are kept."""
        if self._progress.best is not None:
            self.save()

    def save_when_possible(self) -> None:
        """Take a checkpoint as due; one at the end of an epoch has to wait until the epoch is judged."""
        self._wanted = True

    def save_if_due(self) -> None:
        """Write a checkpoint that was asked for, or if the last one is older than the spec allows."""
        if self._wanted or time.monotonic() - self._saved_at >= self._every_s:
            self.save()

    def _reached(self) -> tuple[int, int]:
        """The step, and how many epochs were judged."""
        return self._progress.step, self._progress.epochs_judged(self._steps_per_epoch)
