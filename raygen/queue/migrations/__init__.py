"""How the queue's tables came to be, one file for each change, run by Alembic.

To change a table: change `schema.py`, add `versions/NNNN_what.py` and set `schema.VERSION` to its number. A test
compares what all migrations lead to with the schema.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from raygen.errors import QueueError
from raygen.queue import schema

MIGRATING = 7240
"""The lock that keeps two processes from migrating one PostgreSQL at the same time."""

LOCK_TIMEOUT_S = 60.0
"""Seconds to wait for those who use a PostgreSQL that is to be migrated, or who are migrating it."""


def configuration() -> Config:
    """Alembic's configuration, without a file of its own."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(connection: Connection) -> None:
    """Bring the tables up to date; raises QueueError, and changes nothing, if they are newer than this Raygen.

    No dispatcher of before counts as one any more, and its jobs are for the next one to adopt. What it writes is
    refused: from schema 0005 on it reads the version before it writes, and that of 0004 cannot register any more.
    """
    is_postgres = connection.dialect.name == "postgresql"
    if is_postgres:
        # What a migration does may take its time, and those who wait for it wait as long.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S:.0f}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
    if inspect(connection).has_table("alembic_version"):
        if is_postgres:
            # Whoever writes has read the version, and comes to an end first; whoever comes now reads the next one.
            connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
        check_known(version)
        if version not in (None, schema.VERSION):
            _forget_dispatchers(connection)
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def check_known(version: str | None) -> None:
    """Raise QueueError if tables are of a version that no migration here leads to."""
    known = {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}
    if version not in (None, *known):
        raise QueueError(f"the queue was made by a newer Raygen (schema {version}); update this one")


def _forget_dispatchers(connection: Connection) -> None:
    """Have no dispatcher of an older schema count as one; its next writing transaction tells it to end."""
    connection.execute(text("UPDATE jobs SET owner = NULL WHERE owner IS NOT NULL"))
    connection.execute(text("DELETE FROM dispatchers"))
