"""What all migrations lead to is the schema, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from queue_databases import DATABASES, fresh_database, on_postgres

from raygen.errors import QueueError, QueueUpgradedError
from raygen.queue import database, migrations, schema
from raygen.queue.store import Store


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
    schema.index_of_waiting()
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


@pytest.mark.parametrize("engine", [on_postgres], indirect=True)
def test_who_is_older_than_the_tables_waits_for_nobody_and_keeps_nobody_waiting(engine: sa.Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with engine.begin() as reader:
        reader.exec_driver_sql(database.VERSION_QUERY)
        with ThreadPoolExecutor(1) as pool, pytest.raises(QueueError, match="made by a newer Raygen"):
            pool.submit(Store, engine.url).result(30)


def test_jobs_of_the_first_version_keep_their_devices_and_their_runs(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        configuration = migrations.configuration()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0001")
        connection.exec_driver_sql("INSERT INTO clusters (name, gpus, cpus, problem) VALUES ('c', 4, 16, '')")
        for number, (gpus, cpus) in enumerate([(4, 8), (0.5, 2), (0, 3)], start=1):
            connection.exec_driver_sql(
                'INSERT INTO jobs (id, name, token, folder, kind, model, data, "user", cluster, priority, retries, '
                "gpus, cpus, state, reason, attempt, losses, submitted_at, not_before) VALUES "
                f"({number}, 'job-{number}', 't', '/shared/job-{number}', 'train', 'ae', 'digits', 'me', 'c', 0, 2, "
                f"{gpus}, {cpus}, 'queued', '', 0, 0, 0, 0)"
            )
    upgrade(engine)
    columns = "storage, processes, fewest_processes, gpus_each, cpus_each"
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT {columns} FROM jobs ORDER BY id").all()
    assert [tuple(row) for row in found] == [
        ("/shared", 4, 4, 1, 2),
        ("/shared", 1, 1, 0.5, 2),
        ("/shared", 1, 1, 0, 3),
    ]


def test_jobs_that_had_ended_before_their_values_were_kept_have_no_value(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        configuration = migrations.configuration()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0002")
        connection.exec_driver_sql("INSERT INTO clusters (name, problem) VALUES ('c', '')")
        connection.exec_driver_sql(
            'INSERT INTO jobs (name, token, folder, kind, model, data, "user", cluster, priority, retries, state, '
            "reason, attempt, losses, submitted_at, not_before) VALUES "
            "('job.job', 't', '/a/job.job/job.job', 'train', 'ae', 'digits', 'me', 'c', 0, 2, 'succeeded', '', 1, 0, "
            "0, 0)"
        )
    upgrade(engine)
    store = Store(engine.url)
    [job] = store.list()
    assert (job.storage, job.name, job.objective, job.best_value) == ("/a/job.job", "job.job", "", None)
    store.engine.dispose()


def at_version(engine: sa.Engine, version: str) -> None:
    with engine.begin() as connection:
        configuration = migrations.configuration()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, version)


def test_after_an_upgrade_no_dispatcher_of_before_counts_as_one(engine: sa.Engine) -> None:
    at_version(engine, "0004")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO clusters (name, problem) VALUES ('c', '')")
        connection.exec_driver_sql(
            "INSERT INTO dispatchers (id, cluster, host, pid, started_at, lease_until) "
            "VALUES (7, 'c', 'h', 1, 0, 1e12)"
        )
        connection.exec_driver_sql(
            'INSERT INTO jobs (name, token, storage, kind, model, data, "user", cluster, priority, retries, state, '
            "reason, attempt, losses, owner, submitted_at, not_before) VALUES "
            "('job', 't', '/a', 'train', 'ae', 'digits', 'me', 'c', 0, 2, 'running', '', 1, 0, 7, 0, 0)"
        )
        connection.exec_driver_sql(
            "INSERT INTO attempts (job, number, submission_id, started_at, outcome) VALUES (1, 1, 'job-t-1', 60, '')"
        )
    store = Store(engine.url)
    assert store.dispatchers() == []
    successor = store.register("c", host="h", pid=2)
    assert store.adopt(successor) == 1
    assert not store.renew(7)
    [job] = store.owned(successor)
    assert (job.started_at, job.is_over) == (60, False), "what runs holds its devices"
    store.engine.dispose()


def test_a_dispatcher_of_before_holds_and_users_cannot_register_again(engine: sa.Engine) -> None:
    at_version(engine, "0004")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO clusters (name, problem) VALUES ('c', '')")
    register = "INSERT INTO dispatchers (cluster, host, pid, started_at, lease_until) VALUES ('c', 'h', 1, 0, 1e12)"
    with engine.begin() as connection:
        connection.exec_driver_sql(register)
    upgrade(engine)
    with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
        connection.exec_driver_sql(register)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM dispatchers").all() == []


def test_a_process_of_an_older_schema_reads_on_and_writes_nothing(engine: sa.Engine) -> None:
    store = Store(engine.url)
    dispatcher = store.register("c", host="h", pid=1)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for write in (
        lambda: store.claim(dispatcher),
        lambda: store.renew(dispatcher),
        lambda: store.register("c", host="h", pid=1),
        lambda: store.leave(dispatcher),
        lambda: store.set_on_demand("c", None),
    ):
        with pytest.raises(QueueUpgradedError, match=r"upgraded by a newer Raygen \(from schema .* to 9999\).*again"):
            write()
    assert [each.id for each in store.dispatchers()] == [dispatcher]
    assert store.list() == []
    store.engine.dispose()


@pytest.mark.parametrize("engine", [on_postgres], indirect=True)
def test_an_upgrade_waits_for_who_writes_by_the_former_tables(engine: sa.Engine) -> None:
    at_version(engine, "0004")
    with ThreadPoolExecutor(1) as pool, engine.connect() as writer:
        with writer.begin():
            assert writer.exec_driver_sql(database.VERSION_QUERY).scalar_one() == "0004"
            upgraded = pool.submit(upgrade, engine)
            with pytest.raises(TimeoutError):
                upgraded.result(timeout=0.5)
        upgraded.result(timeout=20)
    assert versions(engine) == [schema.VERSION]
