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
from typing import TYPE_CHECKING, Literal

from raygen.data import catalog
from raygen.data.options import SMALLEST_SIDE as SMALLEST_SIDE
from raygen.data.options import DataOptions as DataOptions
from raygen.data.stored import InStorage as InStorage
from raygen.data.stored import StoredData as StoredData
from raygen.errors import DataError, named
from raygen.progress import OnProgress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from raygen.data.cache import Decoded
    from raygen.data.image_names import Names
    from raygen.data.images import Images
    from raygen.data.source import Source
    from raygen.storage import Storage

Split = Literal["train", "validation", "test"]


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


def load(options: DataOptions, stored: InStorage | None = None) -> Dataset:
    """Load the images of a source, decoding or fetching them only if no run on this node has done so before.

    They are taken from the storage that they are in as `stored`, if those are of the same source: then it need not be
    on this machine.

    The parts are the same for every run, whatever its seed: the cache holds the images in one fixed shuffled order,
    the training images first, then those for validation, then those for testing unless an official test part has a
    file of its own. Of a normal class, all parts hold its images only.

    Files of a folder that cannot be decoded are left out, as if they were not there, with a DamagedFilesWarning.
    Raises DataError if the source does not exist, cannot be read, or has too few or too small images, or none of the
    normal class; StorageError.
    """
    from raygen.data.images import warn_of_damaged

    found = _read(options) if stored is None or not stored.record.is_of(options) else _fetched(stored)
    decoded = found.images
    test_fraction = 0.0 if found.has_official_test else options.test_fraction
    # Again: it may have been decoded for a training that splits off no test part.
    _check_count(options, len(decoded.images), decoded.damaged, _least(test_fraction))
    warn_of_damaged(Path(options.source), decoded.damaged, len(decoded.images) + len(decoded.damaged))
    digest = decoded.digest
    train, validation, test = _as_part(decoded).split(options.validation_fraction, test_fraction)
    no_test = found.no_test
    if found.test is not None:
        test = _as_part(found.test)
        _check_alike(options, train, test)
        digest = hashlib.sha256(f"{digest} {found.test.digest}".encode()).hexdigest()[: len(digest)]
    elif test is None and not no_test:
        no_test = "data.test_fraction is 0"
    dataset = Dataset(
        found.name,
        train,
        validation,
        test,
        digest,
        found.has_official_test,
        no_test,
        names=decoded.names,
        damaged=decoded.damaged,
    )
    return dataset if options.normal_class is None else dataset.only(options.normal_class)


def travels(options: DataOptions, cluster_address: str | None) -> bool:
    """Whether a job's images have to be put into its storage, as its nodes do not see the folders of this machine.

    `cluster_address` is that of the cluster that the job goes to, None for this machine's own. Nodes get named sets
    themselves, unless a folder of this machine is named that holds them.
    """
    is_here = options.source not in names() or options.root is not None
    return is_here and cluster_address is not None


def upload(storage: Storage, options: DataOptions, *, on_progress: OnProgress = silent) -> StoredData:
    """Put the images of a source into a storage, all parts of the data set, unless they are there already.

    Raises DataError as `load` does, and StorageError.
    """
    from raygen.data import stored

    found = _read(options)
    test_name = f"{found.name}-test"
    return StoredData(
        source=options.source,
        root=options.root,
        image_size=options.image_size,
        name=found.name,
        images=stored.put(storage, found.images, found.name, on_progress),
        test=None if found.test is None else stored.put(storage, found.test, test_name, on_progress),
        no_test=found.no_test,
    )


@dataclass(frozen=True)
class _Found:
    """What a source holds: the images to train and validate on, and the official test part if it has one."""

    name: str
    images: Decoded
    test: Decoded | None
    no_test: str

    @property
    def has_official_test(self) -> bool:
        return self.test is not None or self.no_test != ""


def _read(options: DataOptions) -> _Found:
    """What is on this machine."""
    name, source = _source(options)
    least = _least(0.0 if source.has_official_test else options.test_fraction)
    images = _decoded(options, name, source, least=least)
    test = None if source.test is None else _decoded(options, f"{name}-test", source.test, least=1)
    return _Found(name, images, test, source.no_test)


def _fetched(place: InStorage) -> _Found:
    """What `upload` has put into a storage."""
    from raygen.data import stored

    record = place.record
    images = stored.fetch(place.storage, record.images, record.name, place.on_progress)
    test = None
    if record.test is not None:
        test = stored.fetch(place.storage, record.test, f"{record.name}-test", place.on_progress)
    return _Found(record.name, images, test, record.no_test)


def _least(test_fraction: float) -> int:
    """How many images the parts need that are split off."""
    return 3 if test_fraction else 2


def _check_count(options: DataOptions, count: int, damaged: Mapping[str, str], least: int) -> None:
    if count < least:
        uses = ", ".join(("one to train on", "one to validate on", "one to test on")[:least])
        others = f"; {len(damaged)} cannot be decoded: {named(damaged)}" if damaged else ""
        raise DataError(f"{options.source}: {least} images are needed, {uses}, not {count}{others}")


def _decoded(options: DataOptions, name: str, source: Source, *, least: int) -> Decoded:
    """All images of a source, in their shuffled order; raises DataError for fewer than `least`, if it reads them."""
    from raygen.data import cache

    def read_checked(damaged: Mapping[str, str]) -> Images:
        images = source.read_without(damaged) if damaged and source.read_without else source.read()
        count, _, height, width = images.shape
        _check_count(options, count, damaged, least)
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"{options.source} holds images of {width}x{height} pixels; 8x8 is the smallest size: "
                "enlarge them with --image-size 8"
            )
        return images

    size = str(options.image_size or "native")
    return cache.decode_once(
        f"{name}-{size}",
        f"{size}\n{source.fingerprint}",
        read_checked,
        leaves_out=source.read_without is not None,
    )


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
