"""Images to train on: decoded once per node, memory-mapped, split the same way for every run.

A source is the name of a data set (`catalog.py`), a folder of images (`folder.py`) or a .npy or .npz file
(`array.py`). Importing this module imports neither numpy nor torch: the command line lists data sets from it.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from raygen.data import catalog
from raygen.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from raygen.data.images import Images

SMALLEST_SIDE = 8  # pixels


class DataOptions(BaseModel):
    """Which images to train on, and how they are prepared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        "digits",
        min_length=1,
        description="a data set's name, a folder of images, or a .npy or .npz file",
    )
    root: Path | None = Field(None, description="folder where downloaded data sets live")
    image_size: int | None = Field(
        None,
        ge=SMALLEST_SIDE,
        description="crop and resize the images to squares of this side, in pixels",
    )
    held_out_fraction: float = Field(
        0.1, gt=0, le=0.5, description="part of the images kept out of training, for evaluation"
    )
    normal_class: int | None = Field(
        None, ge=0, description="train on the images of this class only, to find what is none; none: all classes"
    )


@dataclass(frozen=True)
class Dataset:
    """Decoded images, uint8 [N, C, H, W] in 0..255, in memory that all processes of a node share.

    Where the source has classes, `train_labels` and `held_out_labels` are those of the images, int64 [N] from 0.

    The memory map is copy-on-write: writing to a tensor changes this process only, never the file.
    """

    name: str
    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def only(self, label: int) -> Dataset:
        """The images of one class; raises DataError where there are no classes, or too few images of this one."""
        if self.train_labels is None or self.held_out_labels is None:
            raise DataError(f"{self.name} has no classes to take one from; --normal-class is for labelled images")
        train, held_out = self.train_labels == label, self.held_out_labels == label
        if not train.any() or not held_out.any():
            classes = ", ".join(map(str, self.train_labels.unique().tolist()[:20]))
            raise DataError(
                f"--normal-class {label}: {self.name} needs images of it to train on and to hold out; its classes are "
                f"{classes}"
            )
        return Dataset(
            self.name,
            self.train[train],
            self.held_out[held_out],
            self.train_labels[train],
            self.held_out_labels[held_out],
        )


def names() -> dict[str, str]:
    """Names of the data sets, each with its one-line description."""
    return {
        name.replace("_", "-"): (inspect.getdoc(function) or "").partition("\n")[0]
        for name, function in vars(catalog).items()
        if inspect.isfunction(function) and function.__module__ == catalog.__name__ and name[0] != "_"
    }


def load(options: DataOptions) -> Dataset:
    """Load the images of a source, decoding them only if no run on this node has done so before.

    The held-out part is the same for every run, whatever its seed: the cache holds the images in one fixed
    shuffled order, and the held-out part is the end of it. Of a normal class, both parts hold its images only.

    Raises DataError if the source does not exist, cannot be decoded, or has too few or too small images, or none of
    the normal class.
    """
    import torch

    from raygen.data import cache

    name, fingerprint, read = _source(options)

    def read_checked() -> Images:
        images = read()
        count, _, height, width = images.shape
        if count < 2:
            raise DataError(f"{options.source}: 2 images are needed, one to train on and one to hold out, not {count}")
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"{options.source} holds images of {width}x{height} pixels; 8x8 is the smallest size: "
                "enlarge them with --image-size 8"
            )
        return images

    size = str(options.image_size or "native")
    decoded, classes = cache.decode_once(f"{name}-{size}", f"{size}\n{fingerprint}", read_checked)
    images, labels = torch.from_numpy(decoded), None if classes is None else torch.from_numpy(classes)
    held_out = max(1, round(len(images) * options.held_out_fraction))
    dataset = Dataset(name, images[:-held_out], images[-held_out:])
    if labels is not None:
        dataset = replace(dataset, train_labels=labels[:-held_out], held_out_labels=labels[-held_out:])
    return dataset if options.normal_class is None else dataset.only(options.normal_class)


def source_positions(dataset: Dataset) -> Tensor:
    """Position in the source, int64 [N] from 0, of each image that `load` gave: the training images, then the others.

    The order of a folder is that of its sorted paths; of an array, that of its rows. Only a data set of all its
    classes has these positions, not one of a normal class.
    """
    import torch

    from raygen.data import cache

    return torch.from_numpy(cache.shuffled(len(dataset.train) + len(dataset.held_out)))


def _source(options: DataOptions) -> tuple[str, str, Callable[[], Images]]:
    """Name of the source, a text that changes with its content, and the function that reads its images."""
    known = names()
    if options.source in known:
        function = getattr(catalog, options.source.replace("-", "_"))
        return options.source, options.source, partial(function, options.root, options.image_size)

    from raygen.data import array, folder

    path = Path(os.path.abspath(os.path.expanduser(options.source)))
    if os.path.isdir(path):
        files = folder.image_files(path)
        fingerprint = folder.fingerprint(path, files)
        return path.name, fingerprint, partial(folder.read_with_classes, path, files, options.image_size)
    if os.path.isfile(path):
        return path.stem, array.fingerprint(path), partial(array.read, path, options.image_size)

    # The spec made the source absolute, so only its last part can be a name mistyped.
    nearest = difflib.get_close_matches(path.name.lower(), known, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise DataError(
        f"{options.source} is neither a data set nor an existing folder or file; {hint}"
        "`raygen datasets` lists the data sets"
    )
