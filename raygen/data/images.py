"""What every source hands to the cache: images that are decoded when they are indexed."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raygen.errors import DamagedFilesError, DamagedFilesWarning, named

Result = TypeVar("Result")


class Images(Protocol):
    """Images uint8 [N, C, H, W] in 0..255, C = 1 or 3, read by an array of indices; a numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, indices: NDArray[np.intp], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Described:
    """Images with what is known of each: its class, `labels` int64 [N] from 0, and its name in the source."""

    images: Images
    labels: NDArray[np.int64] | None = None
    names: Sequence[str] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    def __getitem__(self, indices: NDArray[np.intp], /) -> NDArray[np.uint8]:
        return self.images[indices]


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` pixels, antialiased, and crop the centre."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class _Resized:
    images: Images
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.images.shape[:2], self.side, self.side)

    def __getitem__(self, indices: NDArray[np.intp], /) -> NDArray[np.uint8]:
        images = self.images[indices]
        planes = images.reshape(-1, *images.shape[2:])  # channels are resized one by one: it is the same
        resized = [np.asarray(square(Image.fromarray(plane), self.side)) for plane in planes]
        return np.stack(resized).reshape(-1, *self.shape[1:])


def resized(images: Images, image_size: int | None) -> Images:
    """The same images as squares of `image_size` pixels; as they are if it is None."""
    return images if image_size is None else _Resized(images, image_size)


def without_damaged(use: Callable[[Mapping[str, str]], Result]) -> tuple[Result, dict[str, str]]:
    """What `use` returns once it leaves out the damaged files of a source, and these: it is told of all met so far.

    They are given by their names, each with the reason why it cannot be decoded. Raises DamagedFilesError if `use`
    does for one that it was told of.
    """
    damaged: dict[str, str] = {}
    while True:
        try:
            return use(damaged), damaged
        except DamagedFilesError as error:
            if damaged.keys() & error.reasons.keys():
                raise
            damaged = dict(sorted({**damaged, **error.reasons}.items()))


def warn_of_damaged(place: Path, damaged: Mapping[str, str], count: int) -> None:
    """Warn in one line that names them that some of the `count` files in a folder are left out, if there are such."""
    if damaged:
        verb = "is" if len(damaged) == 1 else "are"
        warnings.warn(
            f"{len(damaged):,} of {count:,} images in {place} cannot be decoded and {verb} left out: {named(damaged)}",
            DamagedFilesWarning,
            stacklevel=3,
        )
