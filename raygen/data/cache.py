"""Decoded images on disk: one .npy file per source, written once per node and mapped by every process."""

import hashlib
import math
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from raygen.data.images import Images
from raygen.errors import DataError

SPLIT_SEED = 2_718_281  # the same for every run: results are compared on the same held-out images
VERSION = 1  # raise it when decoding, resizing or the order of the images changes
CHUNK_BYTES = 32 * 2**20  # decoded images held in memory while writing


def folder() -> Path:
    """Raygen's cache folder: the environment's RAYGEN_CACHE, else `raygen` in the user's cache folder."""
    chosen = os.environ.get("RAYGEN_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("raygen")


def decode_once(name: str, fingerprint: str, read: Callable[[], Images]) -> NDArray[np.uint8]:
    """Map the cached images of a source, [N, C, H, W] in a fixed shuffled order; write them first if absent.

    Processes that ask at the same time wait for the first. Raises DataError if the cache cannot be written.
    """
    digest = hashlib.sha256(os.fsencode(f"{VERSION}\n{fingerprint}")).hexdigest()
    short_name = re.sub(r"[^\w.-]", "_", name)[:40]
    path = folder() / "decoded" / f"{short_name}-{digest[:16]}.npy"
    images = _map(path)
    if images is not None:
        return images
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            images = _map(path)  # another process may have written it while this one waited
            if images is None:
                _write(path, read())
                images = _map(path)
    except OSError as error:
        raise DataError(
            f"cannot write decoded images to {path.parent} ({error.strerror or error}); "
            "free space there or set RAYGEN_CACHE to another folder"
        ) from error
    if images is None:
        raise DataError(f"cannot map {path} into memory; set RAYGEN_CACHE to a folder on a local disk")
    return images


def _map(path: Path) -> NDArray[np.uint8] | None:
    """Map a cached file copy-on-write; None if it is absent or damaged, a truncated one included."""
    try:
        images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError):
        return None
    return images if images.dtype == np.uint8 and images.ndim == 4 else None


def _write(path: Path, images: Images) -> None:
    """Write the images in their shuffled order; the file appears under its name only when it is complete."""
    # RandomState's stream is frozen for ever; that of numpy's newer Generator may change between versions.
    order = np.random.RandomState(SPLIT_SEED).permutation(images.shape[0])
    per_chunk = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
    # The same name each time, so that what a killed process left behind is overwritten; with the node's name in
    # it, because locks do not hold across nodes on every shared disk.
    partial = path.with_name(f"{path.name}.{platform.node()}.partial")
    try:
        # Written, not mapped: on a full disk write() raises, while a store to a map kills the process.
        with open(partial, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
            np.lib.format.write_array_header_1_0(file, header)
            chunks = (order[start : start + per_chunk] for start in range(0, len(order), per_chunk))
            file.writelines(images[chunk].tobytes() for chunk in chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
