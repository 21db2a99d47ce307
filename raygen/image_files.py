"""Images written as one PNG grid, an array or a folder of PNG files: the output's name says which."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raygen import files, pictures
from raygen.errors import RunError, SpecError

MOST_IN_GRID = 10_000

Form = Literal["grid", "array", "folder"]


def form(path: Path) -> Form:
    """What is written at `path`: a grid if it ends in .png, an array if in .npz, else a folder; raises RunError."""
    suffix = path.suffix.lower()
    is_device = path.exists() and not path.is_file() and not path.is_dir()
    if suffix == ".png" or is_device:
        return "grid"
    if suffix == ".npz":
        return "array"
    if suffix and not path.is_dir():
        raise RunError(
            f"cannot write {path}: images are one grid in a .png file, an array in a .npz file, or files in a folder, "
            "whose name has no ending"
        )
    return "folder"


def check(path: Path, count: int) -> None:
    """Raise RunError if nothing can be written at `path`, SpecError for more images than a grid holds."""
    kind = form(path)
    if kind == "folder":
        files.check_folder_writable(path)
        return
    files.check_writable(path)
    if kind == "grid" and count > MOST_IN_GRID:
        raise SpecError(f"a grid holds {MOST_IN_GRID} images at most, not {count}: write a .npz file or a folder")


def write(
    path: Path,
    batches: Iterable[Tensor],
    shape: tuple[int, int, int, int],
    *,
    labels: NDArray[np.int64] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write images of `shape` (N, C, H, W) that come in batches [B, C, H, W] in [0, 1], whole or not at all.

    The array is called `images`, uint8 [N, C, H, W] in 0..255, beside it `labels`, int64 [N], and `names` if they are
    given; the files of a folder have the names that `targets` makes of these, else their number from 0, which keeps
    their order. Both are what `--data` reads. But for a grid only one batch is in memory at a time. Raises as `check`
    does.
    """
    check(path, shape[0])
    kind = form(path)
    if kind == "grid":
        pictures.save(pictures.grid(torch.cat(list(batches))), path)
    elif kind == "array":
        known = {"labels": labels, "names": None if names is None else np.array(names)}
        _write_array(path, batches, shape, {name: array for name, array in known.items() if array is not None})
    else:
        digits = len(str(shape[0] - 1))
        numbers = [f"{number:0{digits}}.png" for number in range(shape[0])]
        write_folder(path, batches, numbers if names is None else targets(names))


def targets(names: Sequence[str]) -> list[str]:
    """The name of a PNG file for each image of a folder, no two of them the same.

    What is called x.png stays so. Others take .png in the place of their ending, or behind it if others are called the
    same but for their endings: of a.png, a.jpg and b.jpg these are a.png, a.jpg.png and b.png.
    """
    stems = Counter(os.path.splitext(name)[0] for name in names)
    taken = {name for name in names if name.endswith(".png")}
    taken |= {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    found = []
    for name in names:
        stem, target = os.path.splitext(name)[0], name
        if not name.endswith(".png"):
            target = f"{stem if stems[stem] == 1 else name}.png"
            while target in taken:  # by a.jpg.png, say, beside the two above, or by a folder
                target += ".png"
        taken.add(target)
        found.append(target)
    return found


def _write_array(
    path: Path, batches: Iterable[Tensor], shape: tuple[int, int, int, int], known: Mapping[str, NDArray[Any]]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    with files.whole(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                file.write(pictures.in_bytes(batch).cpu().numpy().tobytes())
        for name, array in known.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_folder(path: Path, batches: Iterable[Tensor], names: Iterable[str]) -> None:
    """Write images that come in batches [B, C, H, W] in [0, 1] as PNG files into an empty or new folder, all or none.

    Raises RunError where that cannot be.
    """
    remaining = iter(names)
    with files.whole_folder(path) as partial:
        for batch in batches:
            for pixels in pictures.in_bytes(batch).cpu().numpy():
                image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
                place = partial / next(remaining)
                place.parent.mkdir(parents=True, exist_ok=True)
                image.save(place)
