"""A SQLite file that several people use: it is open to those who may write in its folder."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

SHARED = stat.S_IWGRP | stat.S_IWOTH
READ_WRITE = 0o666

LEAST_FREE_BYTES = 2**16
"""What a transaction may take; a disk with less free counts as full."""


def share(path: Path) -> None:
    """Make the file if there is none, open to those who may write in its folder; what is another's stays as it is.

    SQLite gives the files that it makes beside it the same mode.
    """
    with suppress(OSError):  # what cannot be used SQLite tells
        folder = path.parent.stat()
        if folder.st_mode & SHARED:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, folder.st_mode & READ_WRITE))
            for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
                with suppress(FileNotFoundError):
                    _open_like(folder, each)


def _open_like(folder: os.stat_result, path: Path) -> None:
    """Open a file to those who may write in its folder, unless it is another's or a link to what lies elsewhere."""
    # Whoever may write in the folder may have put a link to a private file here, or do so between two calls, so all
    # calls are about one file. It is not opened: to close it again would drop the locks that SQLite has on it.
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        found, itself = os.fstat(file), f"/proc/self/fd/{file}"
        if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return
        if found.st_gid != folder.st_gid:
            with suppress(PermissionError):  # not a group of this user's
                os.chown(itself, -1, folder.st_gid)
        os.chmod(itself, stat.S_IMODE(found.st_mode) | folder.st_mode & READ_WRITE)
    finally:
        os.close(file)


def hint(path: Path) -> str:
    """Why the file cannot be used, and what helps, as far as its disk, its owner and its mode tell; else nothing."""
    for place in (path, path.parent):
        try:
            owner, about, disk = _owner(place), place.stat(), os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:  # somewhere above
            return "; it is closed to you"
        if disk.f_flag & os.ST_RDONLY:
            return "; its file system is read-only"
        if not os.access(place, os.R_OK | os.W_OK):
            if about.st_uid == os.geteuid():
                return f"; {place} is yours, but its mode, {stat.filemode(about.st_mode)}, keeps you from writing"
            return (
                f"; {place} is {owner}'s and closed to you: once {owner} has typed `chmod g+rws {path.parent}`, the "
                f"queue opens to that folder's group with {owner}'s next command"
            )
        if disk.f_bavail * disk.f_frsize < LEAST_FREE_BYTES:
            return "; its disk is full: `raygen rm` makes room"
    return ""


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user without a name
        return f"user {path.stat().st_uid}"
