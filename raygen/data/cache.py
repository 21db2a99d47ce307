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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import platformdirs
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from raygen import files, interruption
from raygen.data import cache_room, split
from raygen.data.image_names import Names, in_bytes
from raygen.data.images import Described, Images, without_damaged
from raygen.errors import DamagedFilesError, DataError

VERSION = 4  # raise it when decoding, resizing, the labels, the names or the order of the images change
REMEDY = "free space there or set RAYGEN_CACHE to another folder"
CHUNK_BYTES = 32 * 2**20  # decoded images held in memory while writing

Kind = Literal["labels", "names", "damaged"]
"""What may be known of images, in a file beside them."""

LEFT_OUT = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))
"""What the file about damaged ones holds: their names, each with the reason."""

SUFFIXES: dict[Kind, str] = {"labels": ".labels.npy", "names": ".names", "damaged": ".damaged.json"}


def folder() -> Path:
    """Raygen's cache folder: the environment's RAYGEN_CACHE, else `raygen` in the user's cache folder."""
    chosen = os.environ.get("RAYGEN_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("raygen")


Part = Literal["decoded", "classifiers", "datasets"]
"""What the cache holds: decoded images, networks that `--network classifier` has trained, and downloaded data sets."""


def part(name: Part) -> Path:
    """The folder of a part of the cache."""
    return folder() / name


def mark_used(path: Path) -> None:
    """Write down that a file of the cache is used now, which its time of change tells."""
    with suppress(OSError):  # of another user, say: then its owner's uses count
        os.utime(path)


@dataclass(frozen=True)
class Decoded:
    """Images uint8 [N, C, H, W] in their shuffled order, mapped from the cache.

    `labels` are their classes, int64 [N], and `names` those in the source, in its own order, if it has some. `damaged`
    are files that are left out, by their names, each with the reason. The images lie in the file `path`, and `sha256`
    is of them alone.
    """

    path: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    names: Names | None
    damaged: Mapping[str, str]
    sha256: str

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell the images from others."""
        return self.sha256[:16]

    def check(self) -> None:
        """Raise DataError if the images are not those of `sha256`, as a disk may have damaged them: then they go."""
        found = digest_of(self.images.shape)
        content = self.images.data.cast("B")
        for start in range(0, len(content), CHUNK_BYTES):
            interruption.check()
            found.update(content[start : start + CHUNK_BYTES])
        if found.hexdigest() != self.sha256:
            self.path.unlink(missing_ok=True)
            raise DataError(
                f"the cached images {self.path} were damaged, and are removed: "
                "type the same again, which decodes them anew"
            )

    def beside(self) -> dict[Kind, bytes]:
        """What is known of the images, each kind as `write` takes it."""
        names = None if self.names is None else self.names.path.read_bytes()
        return _beside(self.labels, names, self.damaged)


def decode_once(
    name: str, fingerprint: str, read: Callable[[Mapping[str, str]], Images], *, leaves_out: bool
) -> Decoded:
    """Map the cached images of a source; decode them first if absent.

    If a source `leaves_out` damaged files, `read` opens the images without those that it is given. Raises
    DamagedFilesError if it does not, and as `once` does.
    """

    def decode(path: Path, damaged: Mapping[str, str]) -> None:
        images = read(damaged)
        order = split.shuffled(images.shape[0])
        write(path, images.shape, _pixels(images, order), _known(images, order, damaged))

    def decode_whole(path: Path) -> None:
        if leaves_out:
            without_damaged(lambda damaged: decode(path, damaged))
        else:
            decode(path, {})

    return once(name, fingerprint, decode_whole)


def once(name: str, fingerprint: str, fill: Callable[[Path], None]) -> Decoded:
    """Map the cached images of this name and fingerprint; have `fill` write them to a path first if they are absent.

    Processes that ask at the same time wait for the first. Raises MachineStorageError or DataError if the cache cannot
    be written, and RunInterruptedError if the images are not wanted any more (raygen.interruption).
    """
    path = _path(name, fingerprint)
    cached = _map(path)
    if cached is not None:
        return cached
    try:
        with files.on_own_disk(f"cannot write images to {path.parent}", REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            with interruption.locked(Path(f"{path}.lock")):
                cached = _map(path)  # another process may have written it while this one waited
                if cached is None:
                    fill(path)
                    cached = _map(path)
    except OSError as error:
        raise DataError(f"cannot write images to {path.parent} ({error.strerror or error}); {REMEDY}") from error
    if cached is None:
        raise DataError(f"cannot map {path} into memory; set RAYGEN_CACHE to a folder on a local disk")
    return cached


def find_as(name: str, fingerprint: str, decoded: Decoded) -> None:
    """Let cached images be found under this name and fingerprint too, as long as they are in the cache."""
    with suppress(OSError):  # it is so already, or somebody else's folder: then they are written once more
        _path(name, fingerprint).symlink_to(decoded.path.name)


def digest_of(shape: tuple[int, ...]) -> "hashlib._Hash":
    """The SHA-256 of images of `shape`, before it has seen any."""
    return hashlib.sha256(f"{shape}\n".encode())


def write(path: Path, shape: tuple[int, ...], pixels: Iterable[bytes], beside: Mapping[Kind, bytes]) -> None:
    """Write images of `shape` in their shuffled order, and first what is known of them: all of it, or nothing.

    What was used least recently makes room.
    """
    cache_room.make(path, math.prod(shape) + sum(map(len, beside.values())))
    _remove_beside(path)
    try:
        for kind, content in beside.items():
            with _whole(path.with_suffix(SUFFIXES[kind])) as file:
                if kind == "labels":
                    _write_header(file, shape[:1], "<i8")
                file.write(content)
        found = digest_of(shape)
        with _whole(path) as file:
            _write_header(file, shape, "|u1")
            for chunk in pixels:
                found.update(chunk)
                file.write(chunk)
            with _whole(_digest_path(path)) as digest_file:
                digest_file.write(found.hexdigest().encode())
    except BaseException:  # whatever ends it, Ctrl-C too: nothing half written stays
        _remove_beside(path)
        raise


def _path(name: str, fingerprint: str) -> Path:
    key = hashlib.sha256(os.fsencode(f"{VERSION}\n{fingerprint}")).hexdigest()
    short_name = re.sub(r"[^\w.-]", "_", name)[:40].lstrip(".")
    return part("decoded") / f"{short_name}-{key[:16]}.npy"


def _remove_beside(path: Path) -> None:
    for suffix in SUFFIXES.values():
        path.with_suffix(suffix).unlink(missing_ok=True)


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".digest")


def _map(path: Path) -> Decoded | None:
    """Map cached images copy-on-write; None if a file is absent or damaged, a truncated one included."""
    path = path.resolve()  # it may be a link of `find_as`
    labels_path, names_path, damaged_path = (path.with_suffix(suffix) for suffix in SUFFIXES.values())
    try:
        images = _mapped(path)
        sha256 = _digest_path(path).read_text(encoding="ascii")
        labels: NDArray[np.int64] | None = np.load(labels_path, allow_pickle=False) if labels_path.exists() else None
        names = Names(names_path) if names_path.exists() else None
        are_whole = names is None or names.count() == len(images)
        damaged = LEFT_OUT.validate_json(damaged_path.read_bytes()) if damaged_path.exists() else {}
    except (OSError, EOFError, ValueError):
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or not re.fullmatch("[0-9a-f]{64}", sha256):
        return None
    if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
        return None
    if not are_whole:
        return None
    return Decoded(path, images, labels, names, damaged, sha256)


def _mapped(path: Path) -> NDArray[np.uint8]:
    """The images of a file, which stays locked as in use for as long as they are mapped: a map keeps it open."""
    with path.open("rb") as file:
        cache_room.hold(file)
        np.lib.format.read_magic(file)
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, dtype=kind, mode="c", offset=file.tell(), shape=shape)


def _pixels(images: Images, order: NDArray[np.int64]) -> Iterator[bytes]:
    """The images in this order, some at a time; raises DamagedFilesError naming all files that cannot be decoded."""
    met: DamagedFilesError | None = None
    per_chunk = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
    for start in range(0, len(order), per_chunk):
        interruption.check()
        try:
            yield images[order[start : start + per_chunk]].tobytes()
        except DamagedFilesError as error:  # the others are decoded all the same: one line is to name them all
            met = DamagedFilesError(error.folder, {**(met.reasons if met else {}), **error.reasons})
    if met is not None:
        raise met


def _known(images: Images, order: NDArray[np.int64], damaged: Mapping[str, str]) -> dict[Kind, bytes]:
    """What is known of images, if they are taken in this order."""
    labels, names = (images.labels, images.names) if isinstance(images, Described) else (None, None)
    return _beside(None if labels is None else labels[order], None if names is None else in_bytes(names), damaged)


def _beside(labels: NDArray[np.int64] | None, names: bytes | None, damaged: Mapping[str, str]) -> dict[Kind, bytes]:
    """What is known of images, in bytes."""
    found: dict[Kind, bytes] = {}
    if labels is not None:
        found["labels"] = labels.astype("<i8").tobytes()
    if names is not None:
        found["names"] = names
    if damaged:
        found["damaged"] = json.dumps(dict(damaged)).encode()
    return found


def _write_header(file: IO[bytes], shape: tuple[int, ...], kind: str) -> None:
    """Begin a .npy file of the type `kind`."""
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it appears under its name only when it is complete."""
    # The node's name, as locks do not hold across nodes on every shared disk. And written, not mapped: on a full disk
    # write() raises, while a store to a map kills the process.
    with files.replacing(path, writer=platform.node()) as partial, partial.open("wb") as file:
        yield file
