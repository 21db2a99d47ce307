"""Decoded images on disk: one .npy file per source, written once per node and mapped by every process.

A source with classes has a second file beside it, NAME.labels.npy, which is complete before the first appears.
"""

import hashlib
import math
import os
import platform
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from raygen.data.images import Images, Labelled
from raygen.errors import DataError

SPLIT_SEED = 2_718_281  # the same for every run: results are compared on the same held-out images
VERSION = 2  # raise it when decoding, resizing, the labels or the order of the images change
CHUNK_BYTES = 32 * 2**20  # decoded images held in memory while writing


def folder() -> Path:
    """Raygen's cache folder: the environment's RAYGEN_CACHE, else `raygen` in the user's cache folder."""
    chosen = os.environ.get("RAYGEN_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("raygen")


def decode_once(
    name: str, fingerprint: str, read: Callable[[], Images]
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Map the cached images of a source, [N, C, H, W] in a fixed shuffled order; write them first if absent.

    With them come their classes, int64 [N], where `read` returns labelled images. Processes that ask at the same
    time wait for the first. Raises DataError if the cache cannot be written.
    """
    digest = hashlib.sha256(os.fsencode(f"{VERSION}\n{fingerprint}")).hexdigest()
    short_name = re.sub(r"[^\w.-]", "_", name)[:40]
    path = folder() / "decoded" / f"{short_name}-{digest[:16]}.npy"
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


def shuffled(count: int) -> NDArray[np.int64]:
    """The order of the cache, [N]: for each image in it, the position that it has in the source."""
    # RandomState's stream is frozen for ever; that of numpy's newer Generator may change between versions.
    return np.random.RandomState(SPLIT_SEED).permutation(count).astype(np.int64)


def _labels_path(path: Path) -> Path:
    return path.with_suffix(".labels.npy")


def _map(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None] | None:
    """Map cached images copy-on-write; None if a file is absent or damaged, a truncated one included."""
    try:
        images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="c")
        has_labels = _labels_path(path).exists()
        labels: NDArray[np.int64] | None = np.load(_labels_path(path), allow_pickle=False) if has_labels else None
    except (OSError, EOFError, ValueError):
        return None
    if images.dtype != np.uint8 or images.ndim != 4:
        return None
    if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
        return None
    return images, labels


def _write(path: Path, images: Images) -> None:
    """Write the images, and their labels if they have any, in their shuffled order."""
    order = shuffled(images.shape[0])
    if isinstance(images, Labelled):
        _write_array(_labels_path(path), images.labels.shape, "<i8", [images.labels[order].tobytes()])
    else:
        _labels_path(path).unlink(missing_ok=True)
    per_chunk = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
    chunks = (order[start : start + per_chunk] for start in range(0, len(order), per_chunk))
    _write_array(path, images.shape, "|u1", (images[chunk].tobytes() for chunk in chunks))


def _write_array(path: Path, shape: tuple[int, ...], kind: str, content: Iterable[bytes]) -> None:
    """Write a .npy file of the type `kind`; it appears under its name only when it is complete."""
    # The same name each time, so that what a killed process left behind is overwritten; with the node's name in
    # it, because locks do not hold across nodes on every shared disk.
    partial = path.with_name(f"{path.name}.{platform.node()}.partial")
    try:
        # Written, not mapped: on a full disk write() raises, while a store to a map kills the process.
        with open(partial, "wb") as file:
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
