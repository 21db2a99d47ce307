"""How the queue's tables came to be, one file for each change, run by Alembic.

To change a table: change `schema.py`, add `versions/NNNN_what.py` and set `schema.VERSION` to its number. A test
compares what all migrations lead to with the schema.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text

from raygen.errors import QueueError

MIGRATING = 7240
"""The lock that keeps two processes from migrating one PostgreSQL at the same time."""


def configuration() -> Config:
    """Alembic's configuration, without a file of its own."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(connection: Connection) -> None:
    """Bring the tables up to date; raises QueueError where they are newer than this Raygen."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
    config = configuration()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise QueueError(f"the queue was made by a newer Raygen ({error}); update this one") from error
