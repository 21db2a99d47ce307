"""Restoring damaged images with a model that was trained to, and telling what it gains over a plain filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from raygen import corruption, files, pictures
from raygen.data import DataOptions, folder
from raygen.errors import DataError, RunError
from raygen.inspection import require_encoder
from raygen.metrics import psnr, ssim
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
    """Images [N, C, H, W] in [0, 1] under the names of the damaged files, as those of PNG files.

    `qualities` are those of the damaged images, of a plain filter and of the restored ones, if clean ones were given.
    """

    names: list[Path]
    images: Tensor
    qualities: list[Quality]

    def write(self, place: Path) -> None:
        """Write them as PNG files into an empty or new folder, all or none; raises RunError."""
        with files.whole_folder(place) as partial:
            for name, pixels in zip(self.names, pictures.in_bytes(self.images).cpu().numpy(), strict=True):
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path)


def restore(trained: TrainedModel, place: Path, clean: Path | None) -> Restored:
    """What the model makes of a folder of damaged images, beside that of their originals if it is given.

    Raises RunError for a model that restores none, DataError for folders that hold no images or others than it takes,
    or clean images of other names.
    """
    check(trained)
    found, damaged = read(trained, place)
    names = targets(found)
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


def read(trained: TrainedModel, place: Path) -> tuple[list[Path], Tensor]:
    """The image files of a folder relative to it, and their images [N, C, H, W] in [0, 1] of the model's shape.

    What a model sees at a lower resolution may also have just that, and is enlarged as it was for the training.
    Raises DataError for a folder that holds no images, or some that do not fit the model or cannot be decoded.
    """
    if not place.is_dir():
        raise DataError(f"{place} is no folder of images")
    paths = folder.image_files(place)
    images = folder.read(place, paths, None)
    count, channels, height, width = images.shape
    shape, options = trained.model.shape, trained.spec.data
    factor = options.corruption_factor if options.corruption == "downsample" else 1
    if channels != shape.channels or (height, width) not in {
        (shape.height, shape.width),
        (shape.height // factor, shape.width // factor),
    }:
        colours = "grey" if channels == 1 else "RGB"
        raise DataError(
            f"{place} holds {colours} images of {height}×{width} pixels, the model restores images of {shape}; "
            "convert them first"
        )
    pixels = torch.from_numpy(images[np.arange(count)]).float().div_(255)
    if (height, width) != (shape.height, shape.width):
        pixels = corruption.enlarged(pixels, shape.height, shape.width)
    return [path.relative_to(place) for path in paths], pixels


def targets(names: list[Path]) -> list[Path]:
    """The name of the PNG file for each image; raises DataError for two images with one name."""
    found: dict[Path, Path] = {}
    for name in names:
        target = name.with_suffix(".png")
        if target in found:
            raise DataError(f"{found[target]} and {name} would both be restored as {target}: rename one of them")
        found[target] = name
    return list(found)


@torch.no_grad()
def decoded(trained: TrainedModel, damaged: Tensor) -> Tensor:
    """What the model makes of damaged images [N, C, H, W] in [0, 1]: images of the same shape and range."""
    model = require_encoder(trained)
    return torch.cat([model.decode(model.encode(chunk)).float() for chunk in damaged.split(CHUNK_IMAGES)])


def read_clean(trained: TrainedModel, place: Path, wanted: list[Path]) -> Tensor:
    """The clean images [N, C, H, W] in [0, 1] of a folder that has the same names, whatever their endings.

    Raises DataError as `read` does, and for other names.
    """
    found, images = read(trained, place)
    known = targets(found)
    for name in wanted:
        if name not in known:
            raise DataError(
                f"{place} holds no clean image of the name {name.with_suffix('')}: --clean takes the originals"
            )
    return images[[known.index(name) for name in wanted]]


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
