"""What all migrations lead to is the schema, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from queue_databases import DATABASES, fresh_database

from raygen.errors import QueueError
from raygen.queue import migrations, schema


@pytest.fixture(params=DATABASES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty database."""
    with fresh_database(request.param, tmp_path) as url:
        engine = sa.create_engine(url)
        yield engine
        engine.dispose()


def upgrade(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrations.upgrade(connection)


def versions(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars())


def test_what_all_migrations_lead_to_is_the_schema(engine: sa.Engine) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []


def test_names_of_constraints_are_those_of_the_schema(engine: sa.Engine) -> None:
    # Later migrations change constraints by name; compare_metadata does not look at all of these names.
    upgrade(engine)
    inspector = sa.inspect(engine)
    for table in schema.metadata.tables.values():
        made = {constraint["name"] for constraint in inspector.get_foreign_keys(table.name)}
        made |= {constraint["name"] for constraint in inspector.get_unique_constraints(table.name)}
        # SQLite forgets the name of a primary key that counts by itself.
        assert made == {str(constraint.name) for constraint in table.constraints - {table.primary_key}}
        foreign_keys = {key["name"]: key["options"].get("ondelete") for key in inspector.get_foreign_keys(table.name)}
        assert foreign_keys == {str(key.name): key.ondelete for key in table.foreign_key_constraints}


def test_the_schemas_version_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(migrations.configuration()).get_heads() == [schema.VERSION]


def test_migrating_twice_changes_nothing(engine: sa.Engine) -> None:
    upgrade(engine)
    upgrade(engine)
    assert versions(engine) == [schema.VERSION]


def test_a_database_of_a_newer_raygen_is_refused_and_left_alone(engine: sa.Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(QueueError, match=r"made by a newer Raygen .*9999.*; update this one"):
        upgrade(engine)
    assert versions(engine) == ["9999"]


def test_jobs_of_the_first_version_keep_their_devices(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        configuration = migrations.configuration()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0001")
        connection.exec_driver_sql("INSERT INTO clusters (name, gpus, cpus, problem) VALUES ('c', 4, 16, '')")
        for number, (gpus, cpus) in enumerate([(4, 8), (0.5, 2), (0, 3)], start=1):
            connection.exec_driver_sql(
                'INSERT INTO jobs (id, name, token, folder, kind, model, data, "user", cluster, priority, retries, '
                "gpus, cpus, state, reason, attempt, losses, submitted_at, not_before) VALUES "
                f"({number}, 'job-{number}', 't', '/runs', 'train', 'ae', 'digits', 'me', 'c', 0, 2, {gpus}, {cpus}, "
                "'queued', '', 0, 0, 0, 0)"
            )
    upgrade(engine)
    columns = "processes, fewest_processes, gpus_each, cpus_each"
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT {columns} FROM jobs ORDER BY id").all()
    assert [tuple(row) for row in found] == [(4, 4, 1, 2), (1, 1, 0.5, 2), (1, 1, 0, 3)]
