"""Files that a person asked for: written whole or not at all, and refused in one line before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raygen.errors import RunError


def check_writable(path: Path) -> None:
    """Raise RunError where no file can be written at `path`: no folder there, a folder itself, or read-only."""
    folder = path.parent
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; name a file in it")
    if not folder.is_dir():
        raise RunError(f"cannot write {path}: No such file or directory; make the folder {folder} first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise RunError(f"cannot write {path}: it is read-only; name another file")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in the place of `path`, which it takes when the block ends; raises RunError naming `path`."""
    check_writable(path)
    target = Path(os.path.realpath(path))  # a link stays a link
    is_device = target.exists() and not target.is_file()  # /dev/stdout, say, or a pipe: nothing may take its place
    partial = target if is_device else target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        if not is_device:
            partial.replace(target)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if not is_device:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
