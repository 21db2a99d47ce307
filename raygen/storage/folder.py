"""A storage in a folder: each key is a file, written beside its place, flushed to the disk and then moved there.

obstore's own folders move a file before it is flushed, so that a loss of power may leave half of it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from raygen.storage import reason
from raygen.storage.entry import Entry

PARTIAL = re.compile(r"\.raygen-[0-9a-f]{16}\.partial")
"""What a file is called while it is written."""

NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Folder:
    """The keys of a folder, which is made by the first write; what the system refuses is an OSError."""

    errors = (OSError,)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = len(os.path.join(path, ""))

    def reason(self, error: Exception) -> str:
        """Why the folder refused."""
        return reason.of_folder(error)

    def create(self, key: str, content: bytes) -> bool:
        """Write a content unless there is one."""
        try:
            with self._written(key, content) as partial:
                os.link(partial, self.path / key)
        except FileExistsError:
            return False
        except PermissionError:
            if os.path.lexists(self.path / key):  # in a folder of another user's
                return False
            raise
        return True

    def put(self, key: str, content: bytes | Path) -> None:
        """Write a content, or that of a file, in the place of any other."""
        with self._written(key, content) as partial:
            partial.replace(self.path / key)

    def get(self, key: str, start: int) -> bytes | None:
        """The content from byte `start` on, None if there is none."""
        with suppress(*NOT_THERE), (self.path / key).open("rb") as file:
            file.seek(start)
            return file.read()
        return None

    def entry(self, key: str) -> Entry | None:
        """What a listing would tell of the key."""
        return next(self._entries([os.path.join(self.path, key)]), None)

    def children(self, prefix: str) -> list[str]:
        """The names of folders below a prefix, in any order."""
        with suppress(*NOT_THERE), os.scandir(self.path / prefix) as found:
            return [each.name for each in found if each.is_dir()]
        return []

    def partials(self, prefix: str) -> list[Entry]:
        """What is being written below a prefix, or was when its writer was killed."""
        return [*self._found(prefix, lambda name: PARTIAL.fullmatch(name) is not None)]

    def list(self, prefix: str) -> list[Entry]:
        """All keys below a prefix, in any order."""
        return [*self._found(prefix, lambda name: not PARTIAL.fullmatch(name))]

    def delete(self, keys: Iterable[str]) -> None:
        """Remove contents, and the folders that are empty then: a listing of children would show them."""
        for key in keys:
            with suppress(*NOT_THERE):
                (self.path / key).unlink()
            self._tidy(self.path / key)

    def delete_all(self, prefix: str) -> None:
        """Remove everything below a prefix."""
        folder = self.path / prefix
        while folder.is_dir():  # somebody else may be removing it too
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
        self._tidy(folder)

    def _found(self, prefix: str, is_wanted: Callable[[str], bool]) -> Iterator[Entry]:
        """The files below a prefix with such names, in any order."""

        def failed(error: OSError) -> None:
            if not isinstance(error, NOT_THERE):
                raise error

        for folder, _, names in os.walk(self.path / prefix, onerror=failed, followlinks=True):
            yield from self._entries(os.path.join(folder, name) for name in names if is_wanted(name))

    def _tidy(self, path: Path) -> None:
        for parent in path.parents:
            if not parent.is_relative_to(self.path) or parent == self.path:
                return
            try:
                parent.rmdir()
            except OSError:
                return

    def _entries(self, paths: Iterable[str]) -> Iterator[Entry]:
        for path in paths:
            with suppress(*NOT_THERE):
                found = os.stat(path)
                if stat.S_ISREG(found.st_mode):
                    version = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
                    yield Entry(path[self._root :], found.st_size, version)

    @contextmanager
    def _written(self, key: str, content: bytes | Path) -> Iterator[Path]:
        """A file with the content beside its place, flushed; so is what the block does with it."""
        folder = (self.path / key).parent
        partial = folder / f".raygen-{secrets.token_hex(8)}.partial"
        try:
            with _opened(partial) as file:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, length=1 << 20)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield partial
            with suppress(FileNotFoundError):  # somebody else has removed the key already
                _flush(folder)
        finally:
            partial.unlink(missing_ok=True)


def _opened(path: Path) -> BinaryIO:
    """A new file, with its folder; whoever deletes the last file of a folder may remove it in between."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            _make(path.parent)
            return path.open("xb")
    raise FileNotFoundError(2, "its folder is removed again and again", str(path))


def _make(folder: Path) -> None:
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(folder: Path) -> None:
    """Have names survive a loss of power too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
