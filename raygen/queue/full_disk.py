"""A SQLite file on a full disk, where all can be looked at and runs be removed all the same.

What processes share of a file that is written ahead, NAME-shm, cannot be made there. A connection can do without it if
it has the file for itself: SQLite gives it that only while nobody else has the file open, and lets nobody in then. So
that others wait for moments alone, such a connection is closed after each use.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Engine, event

UNSHARED = ("SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMMAP")
"""What SQLite says if it cannot make what processes share."""


def listen(engine: Engine, *, wait_s: float) -> None:
    """Have an engine's connections work on a full disk, too, each after waiting so long for others at most."""
    event.listen(engine, "do_connect", partial(_connected, wait_s))
    event.listen(engine, "checkin", _close_if_alone)


def _connected(wait_s: float, dialect: Any, record: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """A connection that has looked into the file, alone if there is no other way."""
    deadline = time.monotonic() + wait_s
    alone = False
    while True:
        connection = dialect.connect(*arguments, **{**options, "timeout": 0})
        try:
            _look(connection, alone=alone)
        except sqlite3.OperationalError as error:
            connection.close()
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if is_busy and time.monotonic() < deadline:
                # Two that want the file for themselves would be in each other's way for as long as both waited.
                time.sleep(random.uniform(0.005, 0.05))
            elif alone or error.sqlite_errorname not in UNSHARED:
                raise
            alone = not is_busy
        except sqlite3.Error:
            connection.close()
            raise
        else:
            record.info["alone"] = alone
            return connection


def _look(connection: sqlite3.Connection, *, alone: bool) -> None:
    """Look into the file, which is when SQLite makes what processes share."""
    if alone:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("SELECT 1 FROM sqlite_schema").fetchone()


def _close_if_alone(connection: sqlite3.Connection | None, record: Any) -> None:
    if record.info.get("alone"):
        record.invalidate()
