"""Empty databases for tests: SQLite, and schemas of the PostgreSQL that RAYGEN_TEST_POSTGRES names."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

POSTGRES = os.environ.get("RAYGEN_TEST_POSTGRES")

without_postgres = pytest.mark.skipif(
    not POSTGRES, reason="RAYGEN_TEST_POSTGRES names no PostgreSQL; .ci/run starts one"
)
on_postgres = pytest.param("postgresql", marks=without_postgres)

DATABASES = ["sqlite", on_postgres]


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[sa.URL]:
    """The URL of an empty database, which is gone afterwards."""
    if kind == "sqlite":
        yield sa.URL.create("sqlite", database=str(folder / "queue.sqlite"))
        return
    assert POSTGRES
    url, name = sa.make_url(POSTGRES), f"test_{secrets.token_hex(6)}"
    server = sa.create_engine(url, poolclass=sa.NullPool)
    with server.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    try:
        yield url.update_query_dict({"options": f"-csearch_path={name}"})
    finally:
        with server.begin() as connection:
            # Whoever of the test still holds a transaction open would have this wait for ever.
            connection.exec_driver_sql("SET lock_timeout = '10s'")
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
