"""Decoded images on disk: one .npy file per source, written once per node and mapped by every process.

Beside it are NAME.digest, which tells its images from others, and NAME.labels.npy if the source has classes. Both are
complete before the first appears.
"""

import hashlib
import math
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from raygen.data import split
from raygen.data.images import Images, Labelled
from raygen.errors import DataError

VERSION = 3  # raise it when decoding, resizing, the labels or the order of the images change
CHUNK_BYTES = 32 * 2**20  # decoded images held in memory while writing


def folder() -> Path:
    """Raygen's cache folder: the environment's RAYGEN_CACHE, else `raygen` in the user's cache folder."""
    chosen = os.environ.get("RAYGEN_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("raygen")


@dataclass(frozen=True)
class Decoded:
    """Images uint8 [N, C, H, W] in their shuffled order, mapped from the cache.

    `labels` are their classes, int64 [N], if the source has some. `digest` is of the images alone: sixteen hexadecimal
    digits that tell two sets of them apart.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    digest: str


def decode_once(name: str, fingerprint: str, read: Callable[[], Images]) -> Decoded:
    """Map the cached images of a source; write them first if absent.

    Processes that ask at the same time wait for the first. Raises DataError if the cache cannot be written.
    """
    key = hashlib.sha256(os.fsencode(f"{VERSION}\n{fingerprint}")).hexdigest()
    short_name = re.sub(r"[^\w.-]", "_", name)[:40]
    path = folder() / "decoded" / f"{short_name}-{key[:16]}.npy"
    cached = _map(path)
    if cached is not None:
        return cached
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            cached = _map(path)  # another process may have written it while this one waited
            if cached is None:
                _write(path, read())
                cached = _map(path)
    except OSError as error:
        raise DataError(
            f"cannot write decoded images to {path.parent} ({error.strerror or error}); "
            "free space there or set RAYGEN_CACHE to another folder"
        ) from error
    if cached is None:
        raise DataError(f"cannot map {path} into memory; set RAYGEN_CACHE to a folder on a local disk")
    return cached


def _labels_path(path: Path) -> Path:
    return path.with_suffix(".labels.npy")


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".digest")


def _map(path: Path) -> Decoded | None:
    """Map cached images copy-on-write; None if a file is absent or damaged, a truncated one included."""
    try:
        images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="c")
        digest = _digest_path(path).read_text(encoding="ascii")
        has_labels = _labels_path(path).exists()
        labels: NDArray[np.int64] | None = np.load(_labels_path(path), allow_pickle=False) if has_labels else None
    except (OSError, EOFError, ValueError):
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or not re.fullmatch("[0-9a-f]{16}", digest):
        return None
    if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
        return None
    return Decoded(images, labels, digest)


def _write(path: Path, images: Images) -> None:
    """Write the images in their shuffled order, and first their labels, if they have any, and their digest."""
    order = split.shuffled(images.shape[0])
    if isinstance(images, Labelled):
        with _whole(_labels_path(path)) as file:
            _write_header(file, images.labels.shape, "<i8")
            file.write(images.labels[order].tobytes())
    else:
        _labels_path(path).unlink(missing_ok=True)
    digest = hashlib.sha256(f"{images.shape}\n".encode())
    per_chunk = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
    with _whole(path) as file:
        _write_header(file, images.shape, "|u1")
        for start in range(0, len(order), per_chunk):
            pixels = images[order[start : start + per_chunk]].tobytes()
            digest.update(pixels)
            file.write(pixels)
        with _whole(_digest_path(path)) as beside:
            beside.write(digest.hexdigest()[:16].encode())


def _write_header(file: IO[bytes], shape: tuple[int, ...], kind: str) -> None:
    """Begin a .npy file of the type `kind`."""
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it appears under its name only when it is complete."""
    # The same name each time, so that what a killed process left behind is overwritten; with the node's name in
    # it, because locks do not hold across nodes on every shared disk.
    partial = path.with_name(f"{path.name}.{platform.node()}.partial")
    try:
        # Written, not mapped: on a full disk write() raises, while a store to a map kills the process.
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
