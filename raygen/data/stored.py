"""Images in a storage, for nodes that do not see the folder that they were decoded from.

What one source came to, `cache.Decoded`, lies below `.data/<digest>/` in parts of a few megabytes, `images/000001` and
so on, and likewise `labels`, `names` and `damaged`. `manifest.json`, created last, says the digest of each part:
without it nothing below counts. The digest in the key is of the images and all that is known of them, so that the same
images are put once, and what is at a key never changes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from raygen import interruption
from raygen.data.options import DataOptions
from raygen.errors import DataError
from raygen.progress import OnProgress, to_listener
from raygen.storage import Storage

if TYPE_CHECKING:
    from raygen.data.cache import Decoded, Kind

PREFIX = ".data"
"""How the keys of images begin; no name of a run begins with a dot."""

MANIFEST = "manifest.json"

PART_BYTES = 4 * 2**20
"""Small enough that a line of 5 Mbit/s carries AT_ONCE of them before a request times out."""

AT_ONCE = 4
"""Parts that are on their way at the same time; so many are in memory, and one more."""


class StoredData(BaseModel, frozen=True, extra="forbid"):
    """What a run's record says of its images in the storage: the source that was typed, and what it came to.

    `images` and `test`, that of an official test part, are digests; the other fields are those of `DataOptions` and
    `Source` of these names.
    """

    source: str
    root: Path | None
    image_size: int | None
    name: str
    images: str
    test: str | None
    no_test: str

    def is_of(self, options: DataOptions) -> bool:
        """Whether these options name the source that was put there, prepared in the same way."""
        return (self.source, self.root, self.image_size) == (options.source, options.root, options.image_size)


@dataclass(frozen=True)
class InStorage:
    """A run's images where they lie; `on_progress` hears of it if they are fetched."""

    storage: Storage
    record: StoredData
    on_progress: OnProgress = to_listener


Item = TypeVar("Item")
Result = TypeVar("Result")


class _Part(BaseModel, frozen=True):
    """Bytes `start` to `stop` of a content."""

    kind: str
    key: str
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


class _Content(BaseModel, frozen=True):
    sha256: str
    size_bytes: int


class _Contents(BaseModel, frozen=True):
    """Images of `shape`, and what is known of them; the digest of this is that in the key."""

    version: Literal[1] = 1
    part_bytes: int
    shape: tuple[int, int, int, int]
    of: dict[str, _Content]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(content.size_bytes for content in self.of.values())

    def parts(self) -> Iterator[_Part]:
        """All parts in their order."""
        folder = _folder(self.digest)
        for kind, content in self.of.items():
            for number, start in enumerate(range(0, content.size_bytes, self.part_bytes), start=1):
                stop = min(start + self.part_bytes, content.size_bytes)
                yield _Part(kind=kind, key=f"{folder}/{kind}/{number:06d}", start=start, stop=stop)


class _Manifest(BaseModel, frozen=True):
    contents: _Contents
    parts: list[str]
    """The SHA-256 of each part, in the order of `contents.parts()`."""


def put(storage: Storage, decoded: Decoded, name: str, on_progress: OnProgress) -> str:
    """Put the parts that are not there, and return the digest in their keys; `fetch` finds them in this cache then.

    What an earlier call had put before it was interrupted stays. Raises StorageError, and as `Decoded.check` does.
    """
    from raygen.data import cache

    digest = _put(storage, decoded, on_progress)
    cache.find_as(name, _fingerprint(digest), decoded)
    return digest


def _put(storage: Storage, decoded: Decoded, on_progress: OnProgress) -> str:
    beside = decoded.beside()
    contents = _contents(decoded, beside)
    buffers: dict[str, bytes | memoryview] = {kind: content for kind, content in beside.items()}
    buffers["images"] = decoded.images.data.cast("B")
    there = {entry.key: entry.size_bytes for entry in storage.list(_folder(contents.digest))}
    parts = list(contents.parts())
    missing = {part.key: part.size_bytes for part in parts if there.get(part.key) != part.size_bytes}
    manifest_key = f"{_folder(contents.digest)}/{MANIFEST}"
    if not missing and manifest_key in there:
        return contents.digest
    decoded.check()  # under this key other machines look for whole images, and put none themselves

    def send(part: _Part) -> str:
        content = bytes(buffers[part.kind][part.start : part.stop])
        if part.key in missing:
            storage.put(part.key, content)
        return hashlib.sha256(content).hexdigest()

    done_bytes, total_bytes, digests = 0, sum(missing.values()), []
    on_progress(done_bytes, total_bytes)
    for part, digest in zip(parts, _at_once(send, parts), strict=True):
        digests.append(digest)
        if part.key in missing:
            done_bytes += part.size_bytes
            on_progress(done_bytes, total_bytes)
    storage.create(manifest_key, _Manifest(contents=contents, parts=digests).model_dump_json().encode())
    return contents.digest


def fetch(storage: Storage, digest: str, name: str, on_progress: OnProgress) -> Decoded:
    """The images of this digest, mapped from the cache, which they are written to if no process of this node has yet.

    `name` is for those who look into the cache. Raises DataError naming what is missing or damaged in the storage, and
    as `cache.once` does; StorageError.
    """
    from raygen.data import cache

    def download(path: Path) -> None:
        manifest = _manifest(storage, digest)
        pieces = _Pieces(storage, manifest, on_progress)
        beside: dict[Kind, bytes] = {
            kind: pieces.whole(kind) for kind in cache.SUFFIXES if kind in manifest.contents.of
        }
        cache.write(path, manifest.contents.shape, pieces.images(), beside)

    return cache.once(name, _fingerprint(digest), download)


class _Pieces:
    """The parts of what is in a storage, read some at a time, each compared with its digest."""

    def __init__(self, storage: Storage, manifest: _Manifest, on_progress: OnProgress) -> None:
        self._storage, self._contents, self._on_progress = storage, manifest.contents, on_progress
        self._parts = list(zip(self._contents.parts(), manifest.parts, strict=True))
        self._done_bytes = 0
        on_progress(0, self._contents.size_bytes)

    def whole(self, kind: Kind) -> bytes:
        """One content in one piece; raises DataError if it is not what its digest says."""
        content = b"".join(self.of(kind))
        if hashlib.sha256(content).hexdigest() != self._contents.of[kind].sha256:
            raise _damaged(self._storage, f"{_folder(self._contents.digest)}/{kind}")
        return content

    def images(self) -> Iterator[bytes]:
        """The parts of the images; raises DataError, too, if together they are not what their digest says."""
        from raygen.data import cache

        found = cache.digest_of(self._contents.shape)
        for content in self.of("images"):
            found.update(content)
            yield content
        if found.hexdigest() != self._contents.of["images"].sha256:
            # All of it: the manifest has the digests of these parts, as whoever put them had damaged images.
            raise _damaged(self._storage, _folder(self._contents.digest))

    def of(self, kind: str) -> Iterator[bytes]:
        """The parts of one content in their order; raises DataError naming one that is missing or damaged."""
        for content in _at_once(self._read, [each for each in self._parts if each[0].kind == kind]):
            interruption.check()
            self._done_bytes += len(content)
            self._on_progress(self._done_bytes, self._contents.size_bytes)
            yield content

    def _read(self, part_and_digest: tuple[_Part, str]) -> bytes:
        part, digest = part_and_digest
        content = self._storage.get(part.key)
        if content is None:
            raise _missing(self._storage, part.key)
        if hashlib.sha256(content).hexdigest() != digest:
            raise _damaged(self._storage, part.key)
        return content


def _contents(decoded: Decoded, beside: Mapping[Kind, bytes]) -> _Contents:
    of = {"images": _Content(sha256=decoded.sha256, size_bytes=decoded.images.nbytes)}
    for kind, content in beside.items():
        of[kind] = _Content(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    count, channels, height, width = decoded.images.shape
    return _Contents(part_bytes=PART_BYTES, shape=(count, channels, height, width), of=of)


def _manifest(storage: Storage, digest: str) -> _Manifest:
    key = f"{_folder(digest)}/{MANIFEST}"
    content = storage.get(key)
    if content is None:
        raise _missing(storage, key)
    try:
        manifest = _Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(storage, key) from error
    if manifest.contents.digest != digest or len(manifest.parts) != len(list(manifest.contents.parts())):
        raise _damaged(storage, key)
    return manifest


def _fingerprint(digest: str) -> str:
    return f"stored\n{digest}"


def _folder(digest: str) -> str:
    return f"{PREFIX}/{digest}"


def _missing(storage: Storage, key: str) -> DataError:
    return DataError(
        f"{storage.name}/{key} is not there: submit a job with the same images again, which puts back what lacks"
    )


def _damaged(storage: Storage, key: str) -> DataError:
    return DataError(
        f"{storage.name}/{key} is damaged: remove it and submit a job with the same images again, which puts it back"
    )


def _at_once(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of all items in their order, some of which are worked on in threads while one is used."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > AT_ONCE:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
