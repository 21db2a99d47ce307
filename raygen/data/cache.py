"""Decoded images on disk: one .npy file per source, written once per node and mapped by every process.

Beside it are NAME.digest, which tells its images from others, NAME.labels.npy if the source has classes, NAME.names if
its images have names, and NAME.damaged.json if some of its files are left out. All are complete before it appears.
"""

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from raygen.data import split
from raygen.data.image_names import Names, in_bytes
from raygen.data.images import Described, Images, without_damaged
from raygen.errors import DamagedFilesError, DataError

VERSION = 4  # raise it when decoding, resizing, the labels, the names or the order of the images change
CHUNK_BYTES = 32 * 2**20  # decoded images held in memory while writing


def folder() -> Path:
    """Raygen's cache folder: the environment's RAYGEN_CACHE, else `raygen` in the user's cache folder."""
    chosen = os.environ.get("RAYGEN_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("raygen")


@dataclass(frozen=True)
class Decoded:
    """Images uint8 [N, C, H, W] in their shuffled order, mapped from the cache.

    `labels` are their classes, int64 [N], and `names` those in the source, in its own order, if it has some. `damaged`
    are files that are left out, by their names, each with the reason. `digest` is of the images alone: sixteen
    hexadecimal digits that tell two sets of them apart.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    names: Names | None
    damaged: Mapping[str, str]
    digest: str


def decode_once(
    name: str, fingerprint: str, read: Callable[[Mapping[str, str]], Images], *, leaves_out: bool
) -> Decoded:
    """Map the cached images of a source; write them first if absent.

    If a source `leaves_out` damaged files, `read` opens the images without those that it is given. Processes that ask
    at the same time wait for the first. Raises DamagedFilesError if it does not, and DataError if the cache cannot be
    written.
    """

    def write(damaged: Mapping[str, str]) -> None:
        _write(path, read(damaged), damaged)

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
                if leaves_out:
                    without_damaged(write)
                else:
                    write({})
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


def _names_path(path: Path) -> Path:
    return path.with_suffix(".names")


def _damaged_path(path: Path) -> Path:
    return path.with_suffix(".damaged.json")


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".digest")


def _map(path: Path) -> Decoded | None:
    """Map cached images copy-on-write; None if a file is absent or damaged, a truncated one included."""
    try:
        images: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="c")
        digest = _digest_path(path).read_text(encoding="ascii")
        has_labels = _labels_path(path).exists()
        labels: NDArray[np.int64] | None = np.load(_labels_path(path), allow_pickle=False) if has_labels else None
        names = Names(_names_path(path)) if _names_path(path).exists() else None
        are_whole = names is None or names.count() == len(images)
        damaged = json.loads(_damaged_path(path).read_bytes()) if _damaged_path(path).exists() else {}
    except (OSError, EOFError, ValueError):
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or not re.fullmatch("[0-9a-f]{16}", digest):
        return None
    if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
        return None
    if not are_whole:
        return None
    return Decoded(images, labels, names, damaged, digest)


def _write(path: Path, images: Images, damaged: Mapping[str, str]) -> None:
    """Write the images in their shuffled order, and first what is known of them, and their digest.

    Raises DamagedFilesError naming all files that cannot be decoded.
    """
    order = split.shuffled(images.shape[0])
    _write_beside(path, images, order, damaged)
    met: DamagedFilesError | None = None
    digest = hashlib.sha256(f"{images.shape}\n".encode())
    per_chunk = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
    with _whole(path) as file:
        _write_header(file, images.shape, "|u1")
        for start in range(0, len(order), per_chunk):
            try:
                pixels = images[order[start : start + per_chunk]].tobytes()
            except DamagedFilesError as error:  # the others are decoded all the same: one line is to name them all
                met = DamagedFilesError(error.folder, {**(met.reasons if met else {}), **error.reasons})
                continue
            digest.update(pixels)
            file.write(pixels)
        if met is not None:
            raise met
        with _whole(_digest_path(path)) as beside:
            beside.write(digest.hexdigest()[:16].encode())


def _write_beside(path: Path, images: Images, order: NDArray[np.int64], damaged: Mapping[str, str]) -> None:
    """Write what is known of the images, in their shuffled order, and remove what an earlier writer knew."""
    labels, names = (images.labels, images.names) if isinstance(images, Described) else (None, None)
    for place in (_labels_path(path), _names_path(path), _damaged_path(path)):
        place.unlink(missing_ok=True)
    if labels is not None:
        with _whole(_labels_path(path)) as file:
            _write_header(file, labels.shape, "<i8")
            file.write(labels[order].tobytes())
    if names is not None:
        with _whole(_names_path(path)) as file:
            file.write(in_bytes(names))
    if damaged:
        with _whole(_damaged_path(path)) as file:
            file.write(json.dumps(damaged).encode())


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
