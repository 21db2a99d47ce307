"""What every source hands to the cache: images that are decoded when they are indexed."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


class Images(Protocol):
    """Images uint8 [N, C, H, W] in 0..255, C = 1 or 3, read by an array of indices; a numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, indices: NDArray[np.intp], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Labelled:
    """Images with the class of each: `labels` is int64 [N], counted from 0."""

    images: Images
    labels: NDArray[np.int64]

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
