"""Restoring damaged images with a model that was trained to, and telling what it gains over a plain filter."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from raygen import corruption, image_files
from raygen.data import DataOptions, folder
from raygen.data.images import warn_of_damaged, without_damaged
from raygen.errors import DataError, RunError
from raygen.inspection import require_encoder
from raygen.metrics import psnr, ssim
from raygen.metrics._chunks import on_device
from raygen.models._base import ImageShape
from raygen.results import TrainedModel

CHUNK_IMAGES = 500
MEDIAN_PIXELS = 3
"""Side of the window of the median filter."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How close images are to clean ones: means of PSNR in decibels and of SSIM in [-1, 1]."""

    name: str
    psnr_db: float
    ssim: float


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Images [N, C, H, W] in [0, 1] under the names of the damaged files.

    `qualities` are those of the damaged images, of a plain filter and of the restored ones, if clean ones were given.
    """

    names: list[str]
    images: Tensor
    qualities: list[Quality]

    def write(self, place: Path) -> None:
        """Write them as PNG files, called as `image_files.targets` says; raises RunError."""
        image_files.write_folder(place, self.images.split(CHUNK_IMAGES), image_files.targets(self.names))


def restore(trained: TrainedModel, place: Path, clean: Path | None) -> Restored:
    """What the model makes of a folder of damaged images, beside that of their originals if it is given.

    Raises RunError for a model that restores none, DataError for folders that hold no images or others than it takes,
    or clean images of other names.
    """
    check(trained)
    names, damaged = read(trained, place)
    originals = None if clean is None else read_clean(trained, clean, names)
    images = decoded(trained, damaged)
    qualities = [] if originals is None else compare(trained.spec.data, originals, damaged, images)
    return Restored(names=names, images=images, qualities=qualities)


def check(trained: TrainedModel) -> None:
    """Raise RunError for a model that was not trained to restore images."""
    require_encoder(trained)
    if trained.spec.data.corruption is None:
        raise RunError(
            f"this {trained.spec.model.name} was trained on clean images, and restores none: train one with "
            "--set data.corruption=noise, mask or downsample"
        )


def read(trained: TrainedModel, place: Path) -> tuple[list[str], Tensor]:
    """The names of the image files in a folder, and their images [N, C, H, W] in [0, 1] of the model's shape.

    They are cropped and resized if those for the training were. What a model sees at a lower resolution may also have
    just that, and is enlarged as it was for the training. Files that cannot be decoded are left out, with a
    DamagedFilesWarning. Raises DataError for a folder that holds no images, or some that do not fit the model.
    """
    if not place.is_dir():
        raise DataError(f"{place} is no folder of images")
    found = folder.image_files(place)

    def read_without(damaged: Mapping[str, str]) -> tuple[list[str], Tensor]:
        names = folder.remaining(place, found, damaged)
        return names, _images(trained, place, names)

    (names, images), damaged = without_damaged(read_without)
    warn_of_damaged(place, damaged, len(found))
    return names, images


def _images(trained: TrainedModel, place: Path, names: list[str]) -> Tensor:
    """The images [N, C, H, W] in [0, 1] of these files of a folder, of the model's shape."""
    shape, options = trained.model.shape, trained.spec.data
    factor = options.corruption_factor if options.corruption == "downsample" else 1
    small = (shape.height // factor, shape.width // factor)
    found = folder.sizes(place, names)
    if len(found) > 1:
        _check_sizes(place, shape, found & {small} if factor > 1 else set(), options.image_size)
    images = folder.read(place, names, None if found == {small} else options.image_size)
    count, channels, height, width = images.shape
    if channels not in (1, shape.channels) or (height, width) not in {(shape.height, shape.width), small}:
        colours = "grey" if channels == 1 else "RGB"
        raise DataError(
            f"{place} holds {colours} images of {height}×{width} pixels, the model restores images of {shape}; "
            "convert them first"
        )
    pixels = torch.from_numpy(images[np.arange(count)]).float().div_(255)
    if (height, width) != (shape.height, shape.width):
        pixels = corruption.enlarged(pixels, shape.height, shape.width)
    # Grey files among others are read as RGB in a training, and so they are by themselves.
    return pixels.expand(-1, shape.channels, -1, -1).contiguous()


def _check_sizes(place: Path, shape: ImageShape, small: set[tuple[int, int]], image_size: int | None) -> None:
    """Raise DataError for images of several sizes if they cannot be made one, or some are `small` on purpose."""
    if image_size is None:
        raise DataError(
            f"{place} holds images of different sizes, the model restores images of {shape}: resize them first"
        )
    for height, width in small:
        raise DataError(
            f"{place} holds images of {height}×{width} pixels, which are enlarged as in the training, and others: "
            "restore these from a folder of their own"
        )


def decoded(trained: TrainedModel, damaged: Tensor) -> Tensor:
    """What the model makes of damaged images [N, C, H, W] in [0, 1]: images of that shape and range, on the CPU."""
    model = require_encoder(trained)
    with trained.at_work():
        chunks = on_device(trained.device, CHUNK_IMAGES, damaged)
        return torch.cat([model.decode(model.encode(chunk)).float().cpu() for (chunk,) in chunks])


def read_clean(trained: TrainedModel, place: Path, names: list[str]) -> Tensor:
    """The clean images [N, C, H, W] in [0, 1] of a folder that has the same names, or but for their endings the same.

    Raises DataError as `read` does, and if an image has no clean one, or several.
    """
    found, images = read(trained, place)
    rows = {name: row for row, name in enumerate(found)}
    alike: dict[str, list[int]] = {}
    for name, row in rows.items():
        alike.setdefault(_stem(name), []).append(row)
    chosen = []
    for name in names:
        candidates = [rows[name]] if name in rows else alike.get(_stem(name), [])
        if len(candidates) != 1:
            number = "several clean images" if candidates else "no clean image"
            raise DataError(f"{place} holds {number} of the name {_stem(name)}: --clean takes the originals")
        chosen += candidates
    return images[chosen]


def _stem(name: str) -> str:
    """A name without its ending."""
    return os.path.splitext(name)[0]


def compare(options: DataOptions, clean: Tensor, damaged: Tensor, restored: Tensor) -> list[Quality]:
    """How close damaged images, a filter's and restored ones are to clean ones, each [N, C, H, W] in [0, 1].

    The filter is a median of 3×3 pixels, or bicubic interpolation if the corruption is a lower resolution.
    """
    downsampled = options.corruption == "downsample"
    filtered = bicubic(damaged, options.corruption_factor) if downsampled else median(damaged)
    label = "bicubic" if downsampled else f"median {MEDIAN_PIXELS}×{MEDIAN_PIXELS}"
    return [
        _quality(name, images, clean)
        for name, images in (("damaged", damaged), (label, filtered), ("restored", restored))
    ]


def median(images: Tensor) -> Tensor:
    """Images [N, C, H, W] with the median of 3×3 pixels in the place of each; those at the border are repeated."""
    return _each_plane(images, lambda plane: plane.filter(ImageFilter.MedianFilter(MEDIAN_PIXELS)))


def bicubic(images: Tensor, factor: int) -> Tensor:
    """Images [N, C, H, W] in [0, 1] of repeated pixels, enlarged from as many as there are without the repetitions."""
    height, width = images.shape[2:]
    small = corruption.downsampled(images, factor)
    return _each_plane(small, lambda plane: plane.resize((width, height), Image.Resampling.BICUBIC)).clamp(0, 1)


def _each_plane(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Images [N, C, H, W] whose planes, each by itself, have gone through a function of Pillow's."""
    changed = [np.asarray(change(Image.fromarray(plane))) for plane in images.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(changed)).reshape(*images.shape[:2], *changed[0].shape)


def _quality(name: str, images: Tensor, clean: Tensor) -> Quality:
    chunks = zip(images.split(CHUNK_IMAGES), clean.split(CHUNK_IMAGES), strict=True)
    return Quality(
        name=name,
        psnr_db=psnr.ratios(images, clean).mean().item(),
        ssim=torch.cat([ssim.similarities(*chunk) for chunk in chunks]).mean().item(),
    )
