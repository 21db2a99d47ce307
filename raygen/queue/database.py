"""The queue's database: connections, its clock, its errors.

RAYGEN_DB names it; else it is a SQLite file, in a storage that is a folder, or in this machine's state folder.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from raygen import machine
from raygen.errors import QueueError, QueueUpgradedError
from raygen.mounts import network_file_system
from raygen.queue import full_disk, schema, sharing
from raygen.storage import Storage

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

BUSY_TIMEOUT_S = 30.0
"""Seconds to wait for another process that writes to the same SQLite file."""

IDLE_TIMEOUT_S = 10.0
"""Seconds in which a transaction that does nothing is ended, with its locks: its client was stopped, or cut off. Ours
take milliseconds."""

LOCK_TIMEOUT_S = 15.0
"""Seconds to wait for a lock: longer than one who has vanished keeps it, and short enough to be looked into."""

STATEMENT_TIMEOUT_S = 30.0
"""Seconds that a statement may take, so that none outlives whoever waits for it; migrations are let off."""

CONNECTION = {
    "connect_timeout": 10,
    # A server that was cut off without a word is missed after 25 s at most, or 20 s if it owes an answer.
    **{"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3},
    "tcp_user_timeout": 20_000,  # milliseconds
}
"""How PostgreSQL is connected to, unless the URL says otherwise."""

VERSION_QUERY = "SELECT version_num FROM alembic_version"

SERVER = "postgresql+psycopg://USER@HOST/NAME"

NO_URL = f"RAYGEN_DB is no database URL; write {SERVER}"


def url_of(storage: Storage, *, create: bool) -> sa.URL:
    """Where the queue for runs in `storage` is; without `create`, one that was never made is an empty one in memory.

    Raises QueueError if RAYGEN_DB is no URL, or if there can be no SQLite file in the folder, and ServiceError if this
    machine's state folder cannot be used.
    """
    configured = os.environ.get("RAYGEN_DB")
    if configured:
        try:
            url = sa.make_url(configured)
        except (sa.exc.ArgumentError, ValueError) as error:  # the latter for a port that is no number
            raise QueueError(NO_URL) from error
        if url.get_backend_name() == "sqlite" and url.database:
            _check_locks(Path(url.database).parent)
        return url
    path = (storage.folder or machine.state_folder(storage)) / "queue.sqlite"
    try:
        if not create and not path.exists():
            return sa.URL.create("sqlite")
    except OSError as error:
        raise QueueError(f"the queue {path} cannot be used: {error.strerror}{sharing.hint(path)}") from error
    _check_locks(path.parent)
    if storage.folder is None:
        machine.make_private(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueueError(f"cannot make {path.parent}: {error.strerror}; --storage names another") from error
    return sa.URL.create("sqlite", database=str(path))


def _check_locks(folder: Path) -> None:
    """Raise QueueError if what is in the folder could be written by two machines whose locks do not meet."""
    kind = network_file_system(folder)
    if kind is not None:
        raise QueueError(
            f"the queue cannot be a SQLite file in {folder}, which is on a network file system ({kind}); set "
            f"RAYGEN_DB={SERVER}, or, if only this machine uses the queue, RAYGEN_DB=sqlite:////PATH to a file on a "
            "disk of its own"
        )


def connect(url: sa.URL) -> Engine:
    """The database, its tables brought up to date; raises QueueError if that cannot be done."""
    engine = _engine(url)
    try:
        with _explained(url):
            if engine.dialect.name == "sqlite" and url.database:
                sharing.share(Path(url.database))
            _migrate(engine)
    except QueueError:
        engine.dispose()
        raise
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection to read by; raises QueueError if the database cannot be used."""
    with _explained(engine.url), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, which ends with the block; raises QueueError if the database cannot be used.

    Raises QueueUpgradedError if its tables are not those that this process knows.
    """
    with (
        _explained(engine.url),
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
    ):
        # As this has been read, no upgrade begins before the transaction ends (see migrations.upgrade).
        version = connection.exec_driver_sql(VERSION_QUERY).scalar_one_or_none()
        if version != schema.VERSION:
            raise QueueUpgradedError(
                f"the queue {shown(engine.url)} was upgraded by a newer Raygen (from schema {schema.VERSION} to "
                f"{version}) while this process ran; start it again, with the newer Raygen"
            )
        yield connection


def now(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock, which dispatchers on several machines share."""
    if connection.dialect.name == "sqlite":
        # SQLite runs in this process, on this machine's clock.
        return float(connection.exec_driver_sql("SELECT (julianday('now') - 2440587.5) * 86400.0").scalar_one())
    return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())


def insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An insert of the database's own kind, which can say what to do if the row is there already."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def shown(url: sa.URL) -> str:
    """The URL without its password, which PostgreSQL takes as an option too."""
    hidden = [name for name in url.query if "password" in name]
    return url.difference_update_query(hidden).render_as_string(hide_password=True)


def _engine(url: sa.URL) -> Engine:
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise QueueError(f"the queue works on SQLite and PostgreSQL, not on {url.get_backend_name()}")
    is_postgres = url.get_backend_name() == "postgresql"
    try:
        engine = sa.create_engine(
            url, pool_pre_ping=is_postgres, connect_args=_connection_of(url) if is_postgres else {}
        )
    except sa.exc.NoSuchModuleError as error:
        raise QueueError(NO_URL) from error
    except ModuleNotFoundError as error:
        raise QueueError(f"PostgreSQL needs a driver ({error}): pip install 'raygen[postgres]'") from error
    if not is_postgres:
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        if url.database:
            full_disk.listen(engine, wait_s=BUSY_TIMEOUT_S)
    return engine


def _connection_of(url: sa.URL) -> dict[str, Any]:
    """How to connect to a PostgreSQL, and what its server is to do to clients that vanish or wait without end."""
    of_server = {
        "lock_timeout": f"{LOCK_TIMEOUT_S * 1000:.0f}",
        "statement_timeout": f"{STATEMENT_TIMEOUT_S * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{IDLE_TIMEOUT_S * 1000:.0f}",
        # The server misses a client that was cut off as soon as the client misses the server.
        **{f"tcp_{name}": str(CONNECTION[name]) for name in CONNECTION if name.startswith("keepalives_")},
        "tcp_user_timeout": str(CONNECTION["tcp_user_timeout"]),
    }
    own = " ".join(f"-c {name}={value}" for name, value in of_server.items())
    written = url.query.get("options", "")
    # Of what is said twice the last counts.
    options = " ".join([own, written] if isinstance(written, str) else [own, *written])
    return {**{name: value for name, value in CONNECTION.items() if name not in url.query}, "options": options}


def _configure_sqlite(connection: Any, record: Any) -> None:
    # Python's module would begin transactions on its own, too late to see what they are built on.
    connection.isolation_level = None
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could fail half way: writers queue up before they read.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine) -> None:
    version = _schema_version(engine)
    if version == schema.VERSION:
        return
    from raygen.queue.migrations import check_known, upgrade

    check_known(version)  # before anything is locked
    if engine.dialect.name == "sqlite":
        _write_ahead(engine)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        upgrade(connection)


def _write_ahead(engine: Engine) -> None:
    """Have the file's changes written ahead, so that readers never wait; it stays so.

    SQLite does this only while nobody else looks at the file, and does not wait for that itself.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    connection = engine.raw_connection()
    try:
        while True:
            try:
                connection.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    finally:
        connection.close()


def _schema_version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.exec_driver_sql(VERSION_QUERY).scalar_one_or_none()


@contextmanager
def _explained(url: sa.URL) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sa.exc.TimeoutError, sa.exc.PendingRollbackError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = str(cause).strip().partition("\n")[0]
        if url.get_backend_name() == "sqlite" and url.database:
            reason += sharing.hint(Path(url.database))
        raise QueueError(f"the queue {shown(url)} cannot be used: {reason}") from error
