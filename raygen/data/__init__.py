"""Images to train on: decoded once per node, memory-mapped, split the same way for every run.

A source is the name of a data set (`catalog.py`), a folder of images (`folder.py`) or a .npy or .npz file
(`array.py`). Importing this module imports neither numpy nor torch: the command line lists data sets from it.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from raygen.data import catalog
from raygen.errors import DataError, named

if TYPE_CHECKING:
    from torch import Tensor

    from raygen.data.cache import Decoded
    from raygen.data.image_names import Names
    from raygen.data.images import Images
    from raygen.data.source import Source

Split = Literal["train", "validation", "test"]

Augmentation = Literal["flip", "shift", "crop"]

SMALLEST_SIDE = 8  # pixels


def _as_names(value: Any) -> Any:
    """`flip,shift` and `[flip, shift]` as a list: the names that are typed have no quotes."""
    if not isinstance(value, str):
        return value
    return [name for part in value.strip().removeprefix("[").removesuffix("]").split(",") if (name := part.strip())]


def _in_order(names: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
    return tuple(name for name in get_args(Augmentation) if name in names)


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
    validation_fraction: float = Field(
        0.1, gt=0, le=0.5, description="part of the images that no training sees: epochs and trials are chosen on it"
    )
    test_fraction: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="part of the images that no training or choice sees, of a set without an official test part; "
        "0: no test part",
    )
    normal_class: int | None = Field(
        None, ge=0, description="train on the images of this class only, to find what is none; none: all classes"
    )
    balance: bool = Field(False, description="draw each class equally often, for classes of uneven sizes")
    augment: Annotated[tuple[Augmentation, ...], BeforeValidator(_as_names), AfterValidator(_in_order)] = Field(
        (),
        description="change training images at random, any of flip (left to right), shift and crop; none: as they are",
    )
    augment_shift: float = Field(
        0.1, gt=0, le=0.5, description="part of a side to shift by at most, to the nearest pixel but 0 (augment shift)"
    )
    augment_crop: float = Field(
        0.8, gt=0, lt=1, description="part of a side that a crop has at least, to be enlarged again (augment crop)"
    )
    corruption: Literal["noise", "mask", "downsample"] | None = Field(
        None,
        description="of what is encoded, so that the model learns to restore the clean images; none: clean inputs",
    )
    corruption_std: float = Field(
        0.3,
        gt=0,
        allow_inf_nan=False,
        description="standard deviation of Gaussian noise on pixels in [0, 1] (corruption noise)",
    )
    corruption_mask: float = Field(
        0.5, gt=0, lt=1, description="part of the image under a black block at a random place (corruption mask)"
    )
    corruption_factor: Literal[2, 4] = Field(
        4, description="pixels of a side that become one, and are repeated again (corruption downsample)"
    )

    @property
    def unused_augmentation(self) -> str | None:
        """What is wrong if a strength is set of what is not done; None if all that are set are used."""
        for name in ("shift", "crop"):
            field = f"augment_{name}"
            if name not in self.augment and getattr(self, field) != type(self).model_fields[field].default:
                return f"data.{field}: no image is changed so; add {name} to data.augment"
        return None

    @property
    def corruption_in_words(self) -> str | None:
        """The corruption with its strength; None if there is none."""
        match self.corruption:
            case None:
                return None
            case "noise":
                return f"Gaussian noise of σ {self.corruption_std:g}"
            case "mask":
                return f"a block over {self.corruption_mask:g} of the image"
            case "downsample":
                return f"{self.corruption_factor} × {self.corruption_factor} pixels in one"


@dataclass(frozen=True)
class Part:
    """Images uint8 [N, C, H, W] in 0..255 of one part of a data set; `labels` is int64 [N] from 0 if it has classes.

    `load` maps them from a file that all processes of a node share. The map is copy-on-write: writing to a tensor
    changes this process only, never the file.
    """

    images: Tensor
    labels: Tensor | None = None

    def split(self, validation_fraction: float, test_fraction: float) -> tuple[Part, Part, Part | None]:
        """The images in their order as parts for training, validation and, unless its fraction is 0, testing."""
        from raygen.data import split

        sizes = split.sizes(len(self.images), validation_fraction, test_fraction)
        labels = [None] * 3 if self.labels is None else self.labels.split(sizes)
        train, validation, test = map(Part, self.images.split(sizes), labels)
        return train, validation, test if sizes[-1] else None

    def only(self, label: int) -> Part:
        """The images of one class, of a part that has classes; there may be none."""
        assert self.labels is not None, "a class can be taken of labelled images"
        rows = self.labels == label
        return Part(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """The three parts of a data set, and the digest of its images: sixteen hexadecimal digits.

    `test` is the official test part of a set that has one, else some images that no training or choice sees; it is
    None if there is no such part, for the reason given in `no_test`. `names` are those of all its images by their
    position in the source, if that is a folder, and `damaged` its files that are left out, each with the reason.
    """

    name: str
    train: Part
    validation: Part
    test: Part | None
    digest: str
    has_official_test: bool = False
    no_test: str = ""
    names: Names | None = None
    damaged: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def classes_to_balance(self) -> Tensor:
        """The classes of the training images, int64 [N]; raises DataError if there are none."""
        if self.train.labels is None:
            raise DataError(
                f"data.balance: {self.name} has no classes to draw equally often; leave it out, or take images in a "
                "sub-folder for each class or a .npz file with `labels`"
            )
        return self.train.labels

    def part(self, split: Split) -> Part:
        """One part by its name; raises DataError for a test part that is not there, saying why."""
        if split == "test" and self.test is None:
            raise DataError(f"{self.name} has no test images{self.no_test and f': {self.no_test}'}")
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        part = parts[split]
        assert part is not None
        return part

    def only(self, label: int) -> Dataset:
        """The images of one class; raises DataError if there are no classes, or too few images of this one."""
        if self.train.labels is None or self.validation.labels is None:
            raise DataError(f"{self.name} has no classes to take one from; --normal-class is for labelled images")
        train, validation = self.train.only(label), self.validation.only(label)
        unlabelled = self.test is not None and self.test.labels is None
        test = None if self.test is None or unlabelled else self.test.only(label)
        if not all(len(part.images) for part in (train, validation, test) if part):
            classes = ", ".join(map(str, self.train.labels.unique().tolist()[:20]))
            raise DataError(
                f"--normal-class {label}: {self.name} needs images of it in each of its parts, to train, to validate "
                f"and to test on; its classes are {classes}"
            )
        no_test = "its test images have no labels to tell the normal class by" if unlabelled else self.no_test
        return replace(self, train=train, validation=validation, test=test, no_test=no_test, names=None)


def names() -> dict[str, str]:
    """Names of the data sets, each with its one-line description."""
    return {
        name.replace("_", "-"): (inspect.getdoc(function) or "").partition("\n")[0]
        for name, function in vars(catalog).items()
        if inspect.isfunction(function) and function.__module__ == catalog.__name__ and name[0] != "_"
    }


def load(options: DataOptions) -> Dataset:
    """Load the images of a source, decoding them only if no run on this node has done so before.

    The parts are the same for every run, whatever its seed: the cache holds the images in one fixed shuffled order,
    the training images first, then those for validation, then those for testing unless an official test part has a
    file of its own. Of a normal class, all parts hold its images only.

    Files of a folder that cannot be decoded are left out, as if they were not there, with a DamagedFilesWarning.
    Raises DataError if the source does not exist, cannot be read, or has too few or too small images, or none of the
    normal class.
    """
    from raygen.data.images import warn_of_damaged

    name, source = _source(options)
    test_fraction = 0.0 if source.has_official_test else options.test_fraction
    decoded = _decoded(options, name, source, least=3 if test_fraction else 2)
    warn_of_damaged(Path(options.source), decoded.damaged, len(decoded.images) + len(decoded.damaged))
    digest = decoded.digest
    train, validation, test = _as_part(decoded).split(options.validation_fraction, test_fraction)
    no_test = source.no_test
    if source.test is not None:
        official = _decoded(options, f"{name}-test", source.test, least=1)
        test = _as_part(official)
        _check_alike(options, train, test)
        digest = hashlib.sha256(f"{digest} {official.digest}".encode()).hexdigest()[: len(digest)]
    elif test is None and not no_test:
        no_test = "data.test_fraction is 0"
    dataset = Dataset(
        name,
        train,
        validation,
        test,
        digest,
        source.has_official_test,
        no_test,
        names=decoded.names,
        damaged=decoded.damaged,
    )
    return dataset if options.normal_class is None else dataset.only(options.normal_class)


def _decoded(options: DataOptions, name: str, source: Source, *, least: int) -> Decoded:
    """All images of a source, in their shuffled order; raises DataError for fewer than `least`."""
    from raygen.data import cache

    def check_count(count: int, damaged: Mapping[str, str]) -> None:
        if count < least:
            uses = ", ".join(("one to train on", "one to validate on", "one to test on")[:least])
            others = f"; {len(damaged)} cannot be decoded: {named(damaged)}" if damaged else ""
            raise DataError(f"{options.source}: {least} images are needed, {uses}, not {count}{others}")

    def read_checked(damaged: Mapping[str, str]) -> Images:
        images = source.read_without(damaged) if damaged and source.read_without else source.read()
        count, _, height, width = images.shape
        check_count(count, damaged)
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"{options.source} holds images of {width}x{height} pixels; 8x8 is the smallest size: "
                "enlarge them with --image-size 8"
            )
        return images

    size = str(options.image_size or "native")
    decoded = cache.decode_once(
        f"{name}-{size}",
        f"{size}\n{source.fingerprint}",
        read_checked,
        leaves_out=source.read_without is not None,
    )
    # Again: it may have been decoded for a training that splits off no test part.
    check_count(len(decoded.images), decoded.damaged)
    return decoded


def _as_part(decoded: Decoded) -> Part:
    import torch

    labels = None if decoded.labels is None else torch.from_numpy(decoded.labels)
    return Part(torch.from_numpy(decoded.images), labels)


def _check_alike(options: DataOptions, train: Part, test: Part) -> None:
    ours, theirs = train.images.shape[1:], test.images.shape[1:]
    if ours != theirs:
        raise DataError(
            f"{options.source}: the training images are {list(ours)}, those of the official test part {list(theirs)}; "
            "remove the files that are of another set"
        )


def source_positions(dataset: Dataset) -> Tensor:
    """Position in the source, int64 [N] from 0, of each image that `load` gave: those of train, validation and test.

    The order of a folder is that of its sorted paths, without files that cannot be decoded; of an array, that of its
    rows. The images of an official test part come after all others. Only a data set of all its classes has these
    positions, not one of a normal class.
    """
    import numpy as np
    import torch

    from raygen.data import split

    if dataset.test is None or not dataset.has_official_test:
        parts = [dataset.train, dataset.validation, *([dataset.test] if dataset.test else [])]
        return torch.from_numpy(split.shuffled(sum(len(part.images) for part in parts)))
    first = split.shuffled(len(dataset.train.images) + len(dataset.validation.images))
    official = split.shuffled(len(dataset.test.images))
    return torch.from_numpy(np.concatenate([first, len(first) + official]))


def _source(options: DataOptions) -> tuple[str, Source]:
    """Name of the source, and its images."""
    known = names()
    if options.source in known:
        function: Callable[[DataOptions], Source] = getattr(catalog, options.source.replace("-", "_"))
        return options.source, function(options)

    from raygen.data import array, folder

    path = Path(os.path.abspath(os.path.expanduser(options.source)))
    if os.path.isdir(path):
        return path.name, folder.source(path, options.image_size)
    if os.path.isfile(path):
        return path.stem, array.source(path, options.image_size)

    # The spec made the source absolute, so only its last part can be a name mistyped.
    nearest = difflib.get_close_matches(path.name.lower(), known, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise DataError(
        f"{options.source} is neither a data set nor an existing folder or file; {hint}"
        "`raygen datasets` lists the data sets"
    )
