"""What belongs to this machine and not to a storage: the folder of its Ray head, locks and logs, for this user alone.

Two machines that use one storage have folders of their own, even if the state of both lies in one shared home.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import pwd
import re
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from platformdirs import user_state_path

from raygen.errors import ServiceError
from raygen.files import replacing
from raygen.storage import Storage

OPEN_TO_OTHERS = stat.S_IWGRP | stat.S_IWOTH

READABLE_LENGTH = 40
"""Letters of a storage's name that its folder is called by, for people."""

TEMPORARY_PREFIX = "raygen-"

LONGEST_TEMPORARY = 20
"""Bytes that the system's temporary folder may have in its name; Ray makes sockets below, of 107 bytes at most."""


def state_folder(storage: Storage) -> Path:
    """Where this machine keeps what belongs to it for a storage; nothing is made yet.

    Below RAYGEN_STATE, or the user's state directory, by the machine's name and the storage's.
    """
    place = str(storage.folder.resolve()) if storage.folder is not None else storage.url
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    readable = _readable(place.partition("?")[0])[-READABLE_LENGTH:].strip("-")
    return _base() / (_readable(socket.gethostname()) or "machine") / f"{readable}-{digest}"


def user() -> str:
    """Whoever runs this, as the queue calls them: by name, or by number if the system has no name for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # which of them depends on Python's version
        return str(os.getuid())


def user_of(uid: int) -> str:
    """A user of this machine by their number: this one as `user` says, others as the system calls them."""
    if uid == os.getuid():
        return user()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def make_private(folder: Path) -> None:
    """Make a state folder, and what is missing above it, so that only this user can open it.

    Raises ServiceError if it cannot be made, is another user's, or others can write there.
    """
    try:
        _make(folder)
        for each in (_base(), folder.parent, folder):
            _check(each)
    except OSError as error:
        raise ServiceError(
            f"cannot make {folder}: {error.strerror}; name another folder for what belongs to this machine with "
            "RAYGEN_STATE"
        ) from error


def temporary_folder(state: Path) -> Path:
    """A folder with a short name for this user alone, the same at each call unless it is not ours any more.

    Its name is in no one's hands before it is made, and is remembered in the state folder. Raises OSError.
    """
    known = known_temporary_folder(state)
    if known is not None:
        return known
    system = tempfile.gettempdir()
    short = system if len(os.fsencode(system)) <= LONGEST_TEMPORARY else "/tmp"
    made = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=short))
    try:
        with replacing(_temporary_note(state), writer=str(os.getpid())) as partial:
            partial.write_text(str(made), encoding="utf-8")
    except OSError:
        made.rmdir()  # or nobody would know it
        raise
    return made


def remove_temporary_folder(state: Path) -> None:
    """Remove that folder with all that is in it, if it was made and is ours."""
    known = known_temporary_folder(state)
    if known is not None:
        shutil.rmtree(known, ignore_errors=True)
        if known.exists():
            return  # what is left of it is removed the next time
    _temporary_note(state).unlink(missing_ok=True)


def _base() -> Path:
    configured = os.environ.get("RAYGEN_STATE")
    return Path(configured).expanduser().absolute() if configured else user_state_path("raygen")


def _make(folder: Path) -> None:
    if not folder.parent.is_dir():
        _make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _check(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise ServiceError(f"{folder} belongs to another user; name another folder with RAYGEN_STATE")
    if found.st_mode & OPEN_TO_OTHERS:
        raise ServiceError(
            f"others can write to {folder}, which holds what gives access to Ray; type: chmod go-w {folder}, or name "
            "another folder with RAYGEN_STATE"
        )


def _temporary_note(state: Path) -> Path:
    return state / "temporary-folder"


def known_temporary_folder(state: Path) -> Path | None:
    """The folder that was made before, unless somebody removed it and another took its name, or opened it."""
    try:
        known = Path(_temporary_note(state).read_text(encoding="utf-8"))
        found = known.lstat()
    except (OSError, ValueError):  # nothing there, or the note was damaged
        return None
    is_named_so = known.is_absolute() and known.name.startswith(TEMPORARY_PREFIX)
    is_ours = is_named_so and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return known if is_ours and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) else None


def _readable(text: str) -> str:
    return re.sub("[^A-Za-z0-9.]+", "-", text).strip("-.")
