"""The named data sets. A new one is one more public function here; people see its name and first line.

Each function takes the options and returns where the images are, without decoding any: those to train and validate on,
and the official test part if the set has one. They raise DataError if the files are found nowhere and cannot be
downloaded, and so does reading damaged ones. Heavy imports stay inside the functions.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raygen import interruption
from raygen.data.source import Source
from raygen.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raygen.data.images import Images
    from raygen.data.options import DataOptions

SYSTEM_FOLDER = Path("/usr/share/datasets")  # where Debian's data-set packages put their files
CELEBA_TRAINING_IMAGES = 162_770  # files 000001 to 162770; then come the official validation images
CELEBA_TEST_IMAGES = 19_962  # files 182638 to 202599, the last
CELEBA_IMAGES = 202_599
STACKED_IMAGES = 30_000  # 30 of each mode
DOWNLOAD_TIMEOUT_SECONDS = 30  # of silence; without it a firewall that drops packets stalls us for minutes


def digits(options: DataOptions) -> Source:
    """Handwritten digits of scikit-learn: 1,797 grey 8x8 images, embedded, no download."""

    def read() -> Images:
        from raygen.data.images import Described, resized

        pixels, classes = _digits()
        return Described(resized(pixels[:, None], options.image_size), classes)

    return Source("digits", read)


def stacked_digits(options: DataOptions) -> Source:
    """Three digits in red, green and blue, 1,000 modes: 30,000 colour 8x8 images, embedded, no download."""
    fractions = options.validation_fraction, options.test_fraction

    def read() -> Images:
        import numpy as np

        from raygen.data import split
        from raygen.data.images import Described, resized

        pixels, classes = _digits()
        # Each part is drawn from that part of `digits`: none holds a digit that another one shows.
        ends = np.cumsum(split.sizes(len(pixels), *fractions))
        sizes = split.sizes(STACKED_IMAGES, *fractions)
        random = np.random.RandomState(0)  # its stream is frozen for ever: everyone has the same images
        drawn = [
            part[random.randint(len(part), size=(count, 3))]
            for part, count in zip(np.split(split.shuffled(len(pixels)), ends[:-1]), sizes, strict=True)
            if count
        ]
        chosen = np.empty((STACKED_IMAGES, 3), dtype=np.int64)
        chosen[split.shuffled(STACKED_IMAGES)] = np.concatenate(drawn)
        return Described(resized(pixels[chosen], options.image_size), classes[chosen] @ np.array([100, 10, 1]))

    return Source(f"stacked-digits\n{fractions}", read)


def mnist(options: DataOptions) -> Source:
    """Handwritten digits of MNIST: 60,000 grey 28x28 images, 10,000 more to test on."""

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.MNIST(folder, download=True)

    path = _find_or_download("mnist", options.root, _idx_places("MNIST", "mnist"), download)
    return _idx_source(path, options.image_size)


def fashion_mnist(options: DataOptions) -> Source:
    """Clothes of Fashion-MNIST: 60,000 grey 28x28 images, 10,000 more to test on."""

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.FashionMNIST(folder, download=True)

    path = _find_or_download("fashion-mnist", options.root, _idx_places("FashionMNIST", "fashion-mnist"), download)
    return _idx_source(path, options.image_size)


def cifar10(options: DataOptions) -> Source:
    """Photographs of CIFAR-10, ten classes: 50,000 colour 32x32 images, 10,000 more to test on."""

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.CIFAR10(folder, download=True)

    path = _find_or_download("cifar10", options.root, ["cifar-10-batches-py"], download)

    def read(train: bool) -> Images:
        import numpy as np
        import torchvision

        from raygen.data.images import Described, resized

        try:  # checks the MD5 sums of all files before it unpickles them
            found = torchvision.datasets.CIFAR10(path.parent, train=train)
        except RuntimeError as error:
            raise DataError(f"{path} is incomplete or damaged; remove it to have it downloaded again") from error
        pixels = resized(found.data.transpose(0, 3, 1, 2), options.image_size)
        return Described(pixels, np.array(found.targets, dtype=np.int64))

    test = Source(_content(sorted(path.glob("test_batch"))), partial(read, train=False))
    return Source(_content(sorted(path.glob("data_batch_*"))), partial(read, train=True), test)


def celeba(options: DataOptions) -> Source:
    """Faces of CelebA, centre-cropped: 162,770 colour images, 19,962 more to test on, 64x64 or by --image-size."""
    from raygen.data import folder

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.CelebA(folder, download=True)

    path = _find_or_download("celeba", options.root, ["celeba/img_align_celeba"], download)
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".jpg"))
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from error
    # The usual crop, 178x178 from the middle of 178x218, is what fitting a square does.
    side = options.image_size or 64

    def source(names: list[str]) -> Source:
        def read() -> Images:
            return folder.ImageFiles(path, names, (len(names), 3, side, side), image_size=side)

        return Source(folder.fingerprint(path, names), read)

    if len(names) < CELEBA_TRAINING_IMAGES:
        raise DataError(
            f"{path} holds {len(names)} of the {CELEBA_TRAINING_IMAGES} training images; "
            "extract img_align_celeba.zip again"
        )
    train = source(names[:CELEBA_TRAINING_IMAGES])
    if len(names) < CELEBA_IMAGES:
        return replace(train, no_test=f"{path} holds {len(names)} of {CELEBA_IMAGES} images; the last are for testing")
    return replace(train, test=source(names[CELEBA_IMAGES - CELEBA_TEST_IMAGES : CELEBA_IMAGES]))


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 8, 8] and their classes [N]."""
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)  # from 0..16


def _content(files: Iterable[Path]) -> str:
    """A digest of what is in the files, wherever they are; raises DataError for one that cannot be read."""
    digest = hashlib.sha256()
    for path in files:
        interruption.check()
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror}); remove it to have it downloaded again") from error
    return digest.hexdigest()


def _idx_places(torchvision_folder: str, debian_folder: str) -> list[str]:
    return [
        f"{folder}/train-images-idx3-ubyte{suffix}"
        for folder in (f"{torchvision_folder}/raw", debian_folder)
        for suffix in ("", ".gz")
    ]


def _idx_source(path: Path, image_size: int | None) -> Source:
    """The images of an IDX file, and as the official test part those of the test file beside it if it is there."""

    def source(images: Path, labels: Path | None) -> Source:
        fingerprint = _content(file for file in (images, labels) if file)
        return Source(fingerprint, partial(_read_idx, images, labels, image_size))

    train = source(path, _beside(path, "train-labels-idx1-ubyte"))
    test = _beside(path, "t10k-images-idx3-ubyte")
    if test is None:
        return replace(train, no_test=f"t10k-images-idx3-ubyte or .gz is not in {path.parent}")
    return replace(train, test=source(test, _beside(path, "t10k-labels-idx1-ubyte")))


def _beside(path: Path, name: str) -> Path | None:
    """The file of this name in the same folder, compressed or not; None if there is no such file."""
    places = [path.with_name(f"{name}{suffix}") for suffix in ("", ".gz")]
    return next((place for place in places if place.exists()), None)


def _read_idx(path: Path, labels: Path | None, image_size: int | None) -> Images:
    """The images of an IDX file, with the labels of another one if there is one."""
    from raygen.data.images import Described, resized

    pixels = _idx_bytes(path, magic=2051, dimensions=3)
    images = resized(pixels[:, None], image_size)
    if labels is None:
        return images
    classes = _idx_bytes(labels, magic=2049, dimensions=1)
    if len(classes) != len(pixels):
        raise DataError(f"{labels} holds {len(classes)} labels for {len(pixels)} images; remove it")
    return Described(images, classes.astype("int64"))


def _idx_bytes(path: Path, magic: int, dimensions: int) -> NDArray[np.uint8]:
    """The array of an IDX file: big-endian integers (magic, N, …), as many as dimensions and one, then bytes."""
    import numpy as np

    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        header_bytes = 4 * (1 + dimensions)
        found, *shape = np.frombuffer(content[:header_bytes], dtype=">u4").tolist()
        if found != magic:
            raise ValueError(f"its first number is {found}, not {magic}")
        return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({error}); remove it to have it downloaded again") from error


def _find_or_download(name: str, root: Path | None, places: list[str], download: Callable[[Path], None]) -> Path:
    """First of `places` that exists under the root, the cache or Debian's folder; downloaded if none does."""
    from raygen.data import cache

    folders = [cache.part("datasets"), SYSTEM_FOLDER]
    if root is not None:
        folders.insert(0, root.expanduser())

    def find() -> Path | None:
        candidates = (folder / place for folder in folders for place in places)
        return next((path for path in candidates if path.exists()), None)

    path = find()
    if path is None:
        _download(name, folders, places[0], download)
        path = find()
    if path is None:
        raise DataError(f"{name} was downloaded to {folders[0]}, but {places[0]} is not in it")
    if path.is_relative_to(cache.part("datasets")):
        cache.mark_used(path)
    return path


def _download(name: str, folders: list[Path], place: str, download: Callable[[Path], None]) -> None:
    import contextlib
    import http.client
    import socket

    timeout_seconds = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        folders[0].mkdir(parents=True, exist_ok=True)
        # torchvision prints its progress to stdout, which is for data.
        with interruption.locked(folders[0] / f".{name}.lock"), contextlib.redirect_stdout(sys.stderr):
            download(folders[0])
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip("<>")
        raise DataError(
            f"{name} is not in {', '.join(map(str, folders))}, and the download failed ({reason}); "
            f"get it where there is a network and name with --data-root the folder that holds {place}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_seconds)
