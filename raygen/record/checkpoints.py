"""Which of a trial's checkpoints counts: a loss of power may tear the newest one, as it may a document."""

from __future__ import annotations

import zlib
from pathlib import Path

from raygen.errors import CheckpointError
from raygen.record.documents import Progress
from raygen.storage import Storage

CHUNK_BYTES = 1 << 20


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def newest(storage: Storage, trial: int, progress: Progress) -> bytes:
    """The newest checkpoint of a trial that has one; raises CheckpointError if it is gone."""
    assert progress.checkpoint is not None
    content = storage.get(progress.checkpoint)
    if content is None:
        raise CheckpointError(f"the checkpoint {progress.checkpoint} of trial {trial} is gone")
    return content


def newest_readable(storage: Storage, progress: Progress) -> tuple[Progress, bytes | None]:
    """How far a trial is by its newest checkpoint that is there and whole, and the content of that.

    `progress` is the same object if that is the newest one, or there never was one. If none is left, the trial has
    shown nothing.
    """
    for place, saved in enumerate(progress.checkpoints):
        content = storage.get(saved.key)
        if content is None or zlib.crc32(content) != saved.crc32:
            continue
        if place == 0:
            return progress, content
        judged = tuple(epoch for epoch in progress.epochs if epoch.epoch <= saved.epochs)
        update = {"checkpoints": progress.checkpoints[place:], "epochs": judged, "pace": None}
        return progress.model_copy(update=update), content
    if not progress.checkpoints:
        return progress, None
    return progress.model_copy(update={"checkpoints": (), "epochs": (), "pace": None}), None
