"""How a model learned, as a film: the pictures that its training left, one after the other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from raygen import files
from raygen.errors import RunError
from raygen.record import ranking
from raygen.record.documents import ENDED
from raygen.record.run import PICTURE, Run
from raygen.record.view import Trial

FRAME_MS = 700
LAST_FRAME_MS = 2500


def check(path: Path) -> None:
    """Raise RunError unless a film can be written at `path`, which ends in .gif."""
    if path.suffix.lower() != ".gif":
        raise RunError(f"cannot write {path}: a film is an animated GIF; name a file that ends in .gif")
    files.check_writable(path)


@dataclass(frozen=True)
class Pictures:
    """What a trial's model made as it learned, after some of its epochs."""

    run: Run
    trial: Trial

    @property
    def epochs(self) -> list[int]:
        """The epochs that there are pictures of."""
        return sorted(self.trial.progress.pictures)

    def read(self, epoch: int) -> Image.Image | None:
        """A picture; None if the training has gone on meanwhile and a later one is in its place.

        Raises RunError if it is damaged.
        """
        key = self.trial.progress.pictures[epoch]
        content = self.run.read(key)
        return None if content is None else _decoded(content, key)


def pictured(run: Run) -> Pictures:
    """Those of the best trial whose training has left some; raises RunError if there is none."""
    view = run.look()
    for trial in ranking.best_trials(view):
        if trial.progress.pictures:
            return Pictures(run, trial)
    if view.spec_json["evaluation"]["pictures"] == "none":
        why = "it was made with evaluation.pictures=none"
    elif view.status.state in (*ENDED, "interrupted"):
        why = "it ended before its first epoch did"
    else:
        why = "the first comes after its first epoch"
    raise RunError(f"{run.name} has no pictures of its training: {why}")


def of_best(run: Run) -> tuple[Image.Image, tuple[int, int, int]] | None:
    """The picture of the best model, and the shape (C, H, W) of the images in it; None if there is no best model.

    Raises RunError if it is damaged.
    """
    view = run.look()
    if not view.best:
        return None
    channels, height, width = view.best[0]["image_shape"]
    return _decoded(run.best_file(PICTURE), run.best_key(PICTURE)), (channels, height, width)


def save(run: Run, path: Path) -> tuple[Trial, int]:
    """Write the best trial's pictures as an animated GIF, each below its epoch; says which trial, and how many.

    Raises RunError as `check` and `pictured` do, or if a picture is damaged.
    """
    from raygen import pictures

    check(path)
    found = pictured(run)
    drawn = [pictures.captioned(f"epoch {epoch}", picture) for epoch in found.epochs if (picture := found.read(epoch))]
    if not drawn:
        raise RunError(f"the pictures of {run.name} went while they were read: type it again")
    first, *others = drawn
    durations_ms = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    with files.whole(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=others, duration=durations_ms, loop=0)
    return found.trial, len(drawn)


def _decoded(content: bytes, where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return picture
    except UnidentifiedImageError as error:  # its own words are about an object in memory
        raise RunError(f"{where} is damaged: it is no image") from error
    except (OSError, SyntaxError, ValueError) as error:  # whatever damaged bytes lead Pillow to
        raise RunError(f"{where} is damaged: {error}") from error
