"""Files that are written whole or not at all; those that a person asked for are refused before any work is done."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from raygen.errors import MachineStorageError, RunError

OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES})
"""What a system says of a disk of its own that is full, broken, or not to be written by this user."""

UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
"""What moves the cursor, changes colours, ends a line, turns its direction, cannot be seen, or cannot be encoded."""

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""What PostgreSQL's text cannot hold, and what cannot be encoded."""


def printable(text: str) -> str:
    """The text with what would do something to a terminal, as in names of files, in Python's escapes."""
    return UNPRINTABLE.sub(_escaped, text)


def storable(text: str) -> str:
    """The text with what no database can hold, in Python's escapes."""
    return UNSTORABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def is_text(name: str) -> bool:
    """Whether a name is text, which documents and databases can hold; one from the system may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def check_writable(path: Path) -> None:
    """Raise RunError if no file can be written at `path`: no folder there, a folder itself, or read-only."""
    folder = path.parent
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; name a file in it")
    if not folder.is_dir():
        raise RunError(f"cannot write {path}: No such file or directory; make the folder {folder} first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise RunError(f"cannot write {path}: it is read-only; name another file")


@contextmanager
def on_own_disk(what: str, remedy: str) -> Iterator[None]:
    """Raise what is wrong with a disk of this machine as MachineStorageError: `what` cannot be done, and a remedy.

    Any other OSError is raised as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        reason = f"{what} on {platform.node()} ({os.strerror(error.errno)})"
        raise MachineStorageError(f"{reason}; {remedy}") from error


@contextmanager
def replacing(path: Path, *, writer: str) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes, flushed to the disk, when the block ends.

    `writer` tells apart those who may write at once. One that is the same each time overwrites what a killed process
    left behind. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{writer}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in the place of `path`, which it takes when the block ends; raises RunError naming `path`."""
    check_writable(path)
    target = Path(os.path.realpath(path))  # a link stays a link
    is_device = target.exists() and not target.is_file()  # /dev/stdout, say, or a pipe: nothing may take its place
    try:
        with nullcontext(target) if is_device else replacing(target, writer=str(os.getpid())) as partial:
            yield partial
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def check_folder_writable(path: Path, *, replaces: str | None = None) -> None:
    """Raise RunError if `path` is no empty folder and none can be made there; hidden files do not count.

    Nor do files and folders whose names match the regular expression `replaces`.
    """
    if path.is_dir():
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise RunError(f"cannot write {path}: it is read-only; name another folder")
        for each in _visible(path):
            if replaces is None:
                raise RunError(f"cannot write {path}: the folder is not empty; name a new one")
            if not re.fullmatch(replaces, each.name):
                raise RunError(f"cannot write {path}: it holds {each.name}, which must not be lost; name a new folder")
        return
    if os.path.lexists(path):
        raise RunError(f"cannot write {path}: it is a file; name a folder")
    check_writable(path)


def _visible(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


@contextmanager
def whole_folder(path: Path, *, replaces: str | None = None) -> Iterator[Path]:
    """A folder to fill; what is in it moves to `path`, made if need be, when the block ends.

    There it takes the place of all that `replaces` matches. Raises as `check_folder_writable` does.
    """
    check_folder_writable(path, replaces=replaces)
    is_new = not path.exists()
    partial = path / f".{os.getpid()}.partial"  # inside: the folder may be where another disk begins
    new, old = partial / "new", partial / "old"
    try:
        new.mkdir(parents=True)
        old.mkdir()
        yield new
        check_folder_writable(path, replaces=replaces)
        for each in _visible(path):
            each.rename(old / each.name)
        for each in list(new.iterdir()):
            each.rename(path / each.name)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                path.rmdir()  # of what has failed: a folder that holds something stays
