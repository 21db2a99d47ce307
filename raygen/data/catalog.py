"""The named data sets. A new one is one more public function here; people see its name and first line.

Each function takes the folder named by --data-root (or None) and the image size asked for (or None), and
returns the training images; official test parts stay untouched. They raise DataError if the files are found
nowhere and cannot be downloaded, or are damaged. Heavy imports stay inside the functions.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raygen.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raygen.data.images import Images

SYSTEM_FOLDER = Path("/usr/share/datasets")  # where Debian's data-set packages put their files
CELEBA_TRAINING_IMAGES = 162_770  # files 000001 to 162770; validation and test images follow
STACKED_IMAGES = 30_000  # 30 of each mode
DOWNLOAD_TIMEOUT_SECONDS = 30  # of silence; without it a firewall that drops packets stalls us for minutes


def digits(root: Path | None, image_size: int | None) -> Images:
    """Handwritten digits of scikit-learn: 1,797 grey 8x8 images, embedded, no download."""
    import numpy as np
    from sklearn.datasets import load_digits

    from raygen.data.images import Labelled, resized

    found = load_digits()
    pixels = np.rint(found.images[:, None] * (255 / 16)).astype(np.uint8)  # from 0..16
    return Labelled(resized(pixels, image_size), found.target.astype(np.int64))


def stacked_digits(root: Path | None, image_size: int | None) -> Images:
    """Three digits in red, green and blue, 1,000 modes: 30,000 colour 8x8 images, embedded, no download."""
    import numpy as np
    from sklearn.datasets import load_digits

    from raygen.data.images import Labelled, resized

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    # RandomState's stream is frozen for ever: everyone has the same images.
    chosen = np.random.RandomState(0).randint(len(pixels), size=(STACKED_IMAGES, 3))
    return Labelled(resized(pixels[chosen], image_size), found.target[chosen] @ np.array([100, 10, 1]))


def mnist(root: Path | None, image_size: int | None) -> Images:
    """Handwritten digits of MNIST: 60,000 grey 28x28 images."""

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.MNIST(folder, download=True)

    path = _find_or_download("mnist", root, _idx_places("MNIST", "mnist"), download)
    return _read_idx(path, image_size)


def fashion_mnist(root: Path | None, image_size: int | None) -> Images:
    """Clothes of Fashion-MNIST: 60,000 grey 28x28 images."""

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.FashionMNIST(folder, download=True)

    path = _find_or_download("fashion-mnist", root, _idx_places("FashionMNIST", "fashion-mnist"), download)
    return _read_idx(path, image_size)


def cifar10(root: Path | None, image_size: int | None) -> Images:
    """Photographs of CIFAR-10, ten classes: 50,000 colour 32x32 images."""
    import numpy as np

    from raygen.data.images import Labelled, resized

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.CIFAR10(folder, download=True)

    path = _find_or_download("cifar10", root, ["cifar-10-batches-py"], download)
    import torchvision

    try:  # checks the files' MD5 sums before it unpickles them
        found = torchvision.datasets.CIFAR10(path.parent)
    except RuntimeError as error:
        raise DataError(f"{path} is incomplete or damaged; remove it to have it downloaded again") from error
    return Labelled(resized(found.data.transpose(0, 3, 1, 2), image_size), np.array(found.targets, dtype=np.int64))


def celeba(root: Path | None, image_size: int | None) -> Images:
    """Faces of CelebA, centre-cropped: 162,770 colour images, 64x64 unless --image-size says otherwise."""
    from raygen.data.folder import ImageFiles

    def download(folder: Path) -> None:
        import torchvision

        torchvision.datasets.CelebA(folder, download=True)

    path = _find_or_download("celeba", root, ["celeba/img_align_celeba"], download)
    files = sorted(path.glob("*.jpg"))[:CELEBA_TRAINING_IMAGES]
    if len(files) < CELEBA_TRAINING_IMAGES:
        raise DataError(
            f"{path} holds {len(files)} of the {CELEBA_TRAINING_IMAGES} training images; "
            "extract img_align_celeba.zip again"
        )
    # The usual crop, 178x178 from the middle of 178x218, is what fitting a square does.
    side = image_size or 64
    return ImageFiles(files, shape=(len(files), 3, side, side), image_size=side)


def _idx_places(torchvision_folder: str, debian_folder: str) -> list[str]:
    return [
        f"{folder}/train-images-idx3-ubyte{suffix}"
        for folder in (f"{torchvision_folder}/raw", debian_folder)
        for suffix in ("", ".gz")
    ]


def _read_idx(path: Path, image_size: int | None) -> Images:
    """The images of an IDX file, with the labels of the file beside it where there is one."""
    from raygen.data.images import Labelled, resized

    pixels = _idx_bytes(path, magic=2051, dimensions=3)
    images = resized(pixels[:, None], image_size)
    places = [path.with_name(f"train-labels-idx1-ubyte{suffix}") for suffix in ("", ".gz")]
    labels = next((place for place in places if place.exists()), None)
    if labels is None:
        return images
    classes = _idx_bytes(labels, magic=2049, dimensions=1)
    if len(classes) != len(pixels):
        raise DataError(f"{labels} holds {len(classes)} labels for {len(pixels)} images; remove it")
    return Labelled(images, classes.astype("int64"))


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

    folders = [cache.folder() / "datasets", SYSTEM_FOLDER]
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
    return path


def _download(name: str, folders: list[Path], place: str, download: Callable[[Path], None]) -> None:
    import contextlib
    import http.client
    import socket

    from filelock import FileLock

    timeout_seconds = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        folders[0].mkdir(parents=True, exist_ok=True)
        # torchvision prints its progress to stdout, which is for data.
        with FileLock(folders[0] / f".{name}.lock"), contextlib.redirect_stdout(sys.stderr):
            download(folders[0])
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip("<>")
        raise DataError(
            f"{name} is not in {', '.join(map(str, folders))}, and the download failed ({reason}); "
            f"get it where there is a network and name with --data-root the folder that holds {place}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_seconds)
