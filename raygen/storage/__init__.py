"""Where runs and data are kept: a folder, or a bucket at s3://, gs:// or az://. Contents are bytes under keys.

Two ways to write carry everything: `create`, which never takes the place of what is there, and `put` by a single
writer. Both write whole: a reader sees the old content or the new. Nodes use the credentials that they have
themselves (environment, instance role); a storage's address holds none.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_data_path

from raygen.errors import StorageError
from raygen.files import UNPRINTABLE, printable
from raygen.storage.address import parsed
from raygen.storage.bucket import Bucket
from raygen.storage.entry import Entry
from raygen.storage.folder import Folder

__all__ = ["PROBE", "Entry", "Storage", "default_storage"]

PROBE = ".raygen-probe"
"""How the keys begin that a storage is tried with."""

MARK = ".raygen-storage"
"""The key that tells a storage from an empty folder in its place."""

CHECKED_BYTES = 4096
"""How much `check` writes: less may find room in a file system that is full."""

NO_KEY = re.compile(rf"{UNPRINTABLE.pattern}|\\")
"""What is in no key; Azure takes a backslash for a slash."""


class Storage:
    r"""A place for contents under keys such as "run/trials/001/trial.json"; all that fails raises StorageError.

    Names in a key are printable, without "\" and none of "", "." and ".."; no key goes on where another one ends
    ("a" and "a/b").
    """

    def __init__(self, address: str | Path) -> None:
        """Nothing is asked of the storage yet; raises InputError if this is no address of one."""
        self._address = parsed(str(address))
        self._place: Bucket | Folder = (
            Bucket(self._address) if self._address.folder is None else Folder(self._address.folder)
        )

    @property
    def url(self) -> str:
        """The storage's address, written in one way: for a folder its absolute path."""
        return self._address.url

    @property
    def name(self) -> str:
        """The storage in a few words, for people."""
        return self._address.name

    @property
    def folder(self) -> Path | None:
        """The folder itself, unless it is a bucket: what only a file system can do is done there."""
        return self._address.folder

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        """Only the address is sent to another process: a client holds this machine's credentials."""
        return Storage, (self.url,)

    def create(self, key: str, content: bytes) -> bool:
        """Write what nobody has written yet; False if the key has a content already, which stays.

        A bucket that fails after it has written may answer False too: it is asked again, and finds what it wrote.
        """
        with self._explained("write", key):
            return self._place.create(key, content)

    def put(self, key: str, content: bytes | Path) -> None:
        """Write a content, or that of a file, in the place of any other; each key has one writer at a time."""
        with self._explained("write", key):
            self._place.put(key, content)

    def get(self, key: str, *, start: int = 0) -> bytes | None:
        """The content from byte `start` on; None if there is none. Beyond its end there is nothing: b""."""
        with self._explained("read", key):
            return self._place.get(key, start)

    def entry(self, key: str) -> Entry | None:
        """What a listing would tell of this key; None if it has no content."""
        with self._explained("read", key):
            return self._place.entry(key)

    def children(self, prefix: str = "") -> list[str]:
        """The names that keys below a prefix go on with, up to the next "/", sorted: those of runs, say."""
        prefix = prefix.rstrip("/")
        with self._explained("list", prefix):
            return sorted(self._place.children(prefix))

    def partials(self, prefix: str = "") -> list[Entry]:
        """What takes room below a prefix beside its keys: contents that are being written, or never will be whole.

        `delete` removes one; whoever still writes it fails then. Of a bucket that is not told.
        """
        prefix = prefix.rstrip("/")
        with self._explained("list", prefix):
            return self._place.partials(prefix)

    def list(self, prefix: str = "") -> list[Entry]:
        """All keys below a prefix, which ends where a "/" follows, sorted."""
        prefix = prefix.rstrip("/")
        with self._explained("list", prefix):
            return sorted(self._place.list(prefix), key=lambda entry: entry.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove contents; keys that have none are left alone."""
        keys = list(keys)
        with self._explained("remove", *keys):
            self._place.delete(keys)

    def delete_all(self, prefix: str) -> None:
        """Remove everything below a prefix."""
        prefix = prefix.rstrip("/")
        with self._explained("remove", prefix):
            self._place.delete_all(prefix)

    def probe(self) -> None:
        """Raise StorageError unless it can be written, read and listed, and never overwrites what `create` finds."""
        key = f"{PROBE}-{secrets.token_hex(6)}"
        self.list(key)
        created = self.create(key, b"first")
        try:
            if not created or self.create(key, b"second") or self.get(key) != b"first":
                raise StorageError(
                    f"{self.name} overwrites what is there when it is asked to create only what is not: runs would "
                    "spoil each other; use a server that honours If-None-Match"
                )
        finally:
            self.delete([key])

    def check(self) -> None:
        """Raise StorageError unless it can be written now, as cheaply as that can be found out."""
        key = f"{PROBE}-{secrets.token_hex(6)}"
        try:
            self.create(key, bytes(CHECKED_BYTES))
        finally:
            self.delete([key])

    def room_bytes(self) -> int | None:
        """How much can still be written to a folder; None of a bucket, and if its file system does not say."""
        if self.folder is None:
            return None
        with self._explained("look at", ""):
            disk = shutil.disk_usage(self.folder)
        return disk.free if disk.total else None

    def mark(self) -> None:
        """Mark it as a storage in use."""
        self.create(MARK, b"")

    def is_marked(self) -> bool:
        """Whether it was marked: an empty folder in its place, on which no disk is mounted, is not."""
        return self.entry(MARK) is not None

    @contextmanager
    def _explained(self, what: str, *keys: str) -> Iterator[None]:
        for key in keys:
            if key and (NO_KEY.search(key) or {"", ".", ".."} & set(key.split("/"))):
                raise StorageError(f"cannot {what} {key!r} in {self.name}: it is not a key")
        try:
            yield
        except self._place.errors as error:
            where = "/".join([self.name.rstrip("/"), *keys[:1]]).rstrip("/")
            # Not chained: what obstore says holds addresses, which a shared access signature is a part of.
            raise StorageError(f"cannot {what} {where}: {printable(self._place.reason(error))}") from None


def default_storage() -> str:
    """Where runs live unless told otherwise: RAYGEN_STORAGE, or the user's data directory."""
    return os.environ.get("RAYGEN_STORAGE") or str(user_data_path("raygen") / "runs")
