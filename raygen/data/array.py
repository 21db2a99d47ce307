"""Images in a .npy or .npz file."""

import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygen.data.images import Described, Images, resized
from raygen.data.source import Source
from raygen.errors import DataError

ACCEPTED = (
    "images are uint8, bool, or float32 or float64 in [0, 1], of shape [N, H, W], [N, C, H, W] or "
    "[N, H, W, C] with C = 1 or 3"
)

IMAGES_AT_ONCE = 1000


@dataclass(frozen=True)
class _ArrayImages:
    """An array [N, C, H, W] of an accepted type as uint8 in 0..255, converted when indexed."""

    path: Path
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, indices: NDArray[np.intp], /) -> NDArray[np.uint8]:
        values: NDArray[Any] = self.array[indices]
        if values.dtype == np.uint8:
            return values.astype(np.uint8, copy=False)
        if values.dtype == np.bool_:
            return values.astype(np.uint8) * np.uint8(255)
        outside = values[~((values >= 0) & (values <= 1))]  # NaN is outside too
        if outside.size:
            raise DataError(f"{self.path} is {values.dtype} and holds the value {outside[0]:g}; {ACCEPTED}")
        pixels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
        return pixels


def source(path: Path, image_size: int | None) -> Source:
    """The images of an array file; its fingerprint changes when the file is written or moved."""
    status = path.stat()
    return Source(f"{path}\n{status.st_size}\n{status.st_mtime_ns}", partial(read, path, image_size))


def read(path: Path, image_size: int | None) -> Images:
    """Open an array file; values are checked and converted to uint8 when indexed.

    An array `labels` beside the images of a .npz file holds their classes: integers from 0, of shape [N].
    Raises DataError if the file is damaged, an array has another type, shape or range than that or ACCEPTED, or bytes
    are 0 and 1 only.
    """
    array, labels = _load(path)
    if not (array.dtype in (np.uint8, np.bool_) or array.dtype.newbyteorder("=") in (np.float32, np.float64)):
        raise DataError(f"{path} is {array.dtype}; {ACCEPTED}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise DataError(f"{path} is {array.dtype} of shape {list(array.shape)}; {ACCEPTED}")
    if array.dtype == np.uint8 and _largest_is_one(array):
        raise DataError(
            f"{path} is uint8 and holds only 0 and 1, and 255 is white: save it as bool, or multiply it by 255"
        )
    images = resized(_ArrayImages(path, array), image_size)
    return images if labels is None else Described(images, _checked_labels(path, labels, len(array)))


def _largest_is_one(array: NDArray[np.uint8]) -> bool:
    """Whether the largest value of all images is 1; as a rule the first few of them tell that it is not."""
    largest = 0
    for start in range(0, len(array), IMAGES_AT_ONCE):
        largest = max(largest, int(array[start : start + IMAGES_AT_ONCE].max(initial=0)))
        if largest > 1:
            break
    return largest == 1


def _checked_labels(path: Path, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min(initial=0) < 0:
        raise DataError(
            f"{path}: `labels` is {labels.dtype} of shape {list(labels.shape)}; the classes of {count} images are "
            f"integers from 0 of shape [{count}]: correct the array or give it another name"
        )
    return labels.astype(np.int64)


def _load(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The array of a .npy file, memory-mapped, or of a .npz file `images`, else the only one; and its `labels`."""
    try:  # nothing is ever unpickled: an object array could run any code
        with path.open("rb") as file:
            if file.read(2) != b"PK":  # not a zip file
                return np.lib.format.open_memmap(path, mode="r"), None
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            names = arrays.files
            name = "images" if "images" in names else names[0] if len(names) == 1 else None
            array = None if name is None else arrays[name]
            labels = arrays["labels"] if name == "images" and "labels" in names else None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "damaged, of another format, or Python objects"
        raise DataError(f"cannot read {path} as a .npy or .npz file ({reason})") from error
    if isinstance(array, np.ndarray):  # a member that is no array comes as bytes
        return array, labels if isinstance(labels, np.ndarray) else None
    found = ", ".join(names[:10]) or "nothing"
    raise DataError(f"{path} holds {found}; name the array with the images `images`")
