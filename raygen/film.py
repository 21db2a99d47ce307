"""How a model learned, as a film: the pictures that its training left, one after the other."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from raygen import files
from raygen.errors import RunError
from raygen.runs import ENDED, Run, Trial

FRAME_MS = 700
LAST_FRAME_MS = 2500


def check(path: Path) -> None:
    """Raise RunError unless a film can be written at `path`, which ends in .gif."""
    if path.suffix.lower() != ".gif":
        raise RunError(f"cannot write {path}: a film is an animated GIF; name a file that ends in .gif")
    files.check_writable(path)


def pictured(run: Run) -> Trial:
    """The best trial whose training has left pictures; raises RunError if there is none."""
    for trial in run.best_trials():
        if trial.pictures():
            return trial
    if run.spec_json["evaluation"].get("pictures") == "none":
        why = "it was made with evaluation.pictures=none"
    elif run.status().state in (*ENDED, "interrupted"):
        why = "it was made before there were any, or ended before its first epoch did"
    else:
        why = "the first comes after its first epoch"
    raise RunError(f"{run.name} has no pictures of its training: {why}")


def save(run: Run, path: Path) -> tuple[Trial, int]:
    """Write the best trial's pictures as an animated GIF, each below its epoch; says which trial, and how many.

    Raises RunError as `check` and `pictured` do, or if a picture is damaged.
    """
    from raygen import pictures

    check(path)
    trial = pictured(run)
    paths = trial.pictures()
    drawn = [pictures.captioned(f"epoch {epoch}", picture) for epoch, each in paths.items() if (picture := read(each))]
    if not drawn:
        raise RunError(f"the pictures of {run.name} went while they were read: type it again")
    first, *others = drawn
    durations_ms = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    with files.whole(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=others, duration=durations_ms, loop=0)
    return trial, len(drawn)


def read(path: Path) -> Image.Image | None:
    """A picture; None if the training has gone on meanwhile and a later one is in its place.

    Raises RunError if it is damaged.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError) as error:  # whatever damaged bytes lead Pillow to
        raise RunError(f"{path} is damaged: {error}") from error
