"""The queue's tables. What they were in earlier versions, and how they became these, is in `migrations/`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    FromClause,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
    text,
)

from raygen import files

VERSION = "0005"
"""The newest migration: what a database must be at to be these tables."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Words(TypeDecorator[str]):
    """Text for people, some of it from clusters and storages: what no database can hold is written as escapes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """The words as they are kept."""
        return None if value is None else files.storable(value)


clusters = Table(
    "clusters",
    metadata,
    Column("name", String, primary_key=True),
    Column("unreachable_since", Float),
    Column("problem", Words, nullable=False),
    Column("nodes", JSON(none_as_null=True)),  # null until a dispatcher has seen the cluster
    Column("lost_nodes", JSON(none_as_null=True)),
    Column("on_demand", JSON(none_as_null=True)),  # what a person has declared
    Column("held_at", Float),  # when a person asked that none of its jobs be started
    Column("held_by", String),  # who that was
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cluster", ForeignKey("clusters.name"), nullable=False),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("registered_at", Float, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("user", String, nullable=False, server_default=text("''")),  # whose jobs it starts; empty: everybody's
    Column("away", JSON(none_as_null=True)),  # what is wrong with storages of its jobs, by their addresses
    Column("process", String, nullable=False, server_default=text("''")),  # what tells it from a later one of its pid
    sqlite_autoincrement=True,  # an id is never used again, so a late process cannot be taken for another
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("token", String, nullable=False),  # keeps jobs apart that had the same name at different times
    Column("storage", Text, nullable=False),
    Column("kind", String, nullable=False),
    Column("model", String, nullable=False),
    Column("data", Text, nullable=False),
    Column("objective", String, nullable=False, server_default=text("''")),
    Column("user", String, nullable=False),
    Column("cluster", ForeignKey("clusters.name"), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("retries", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", Words, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("losses", Integer, nullable=False),  # attempts lost since it was last queued
    Column("restarts", Integer, nullable=False, server_default="0"),  # of its cluster, while it ran
    Column("owner", ForeignKey("dispatchers.id", ondelete="SET NULL")),
    Column("submitted_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("best_value", Float),  # of the objective, once it has ended
    Column("not_before", Float, nullable=False),
    Column("cancelled_at", Float),  # when a person asked for it
    Column("held_at", Float),  # when a person asked that it be not started
    Column("time_limit_s", Float),
    Column("started_at", Float),  # its current attempt; null of an active job if that is over for the cluster
    Column("ran_s", Float, nullable=False, server_default="0"),  # its earlier attempts since it was last queued
    Column("processes", Integer, nullable=False, server_default="1"),
    Column("fewest_processes", Integer, nullable=False, server_default="1"),
    Column("gpus_each", Float, nullable=False, server_default="0"),
    Column("cpus_each", Integer, nullable=False, server_default="0"),
    Column("node_timeout_s", Float),
    Column("places", JSON(none_as_null=True)),  # processes by node
    Column("pending", Integer, nullable=False, server_default="0"),
    Column("unplaced_since", Float),
    UniqueConstraint("name"),
    Index(None, "cluster", "state", "priority", "id"),
    Index(None, "state", "id"),
    sqlite_autoincrement=True,
)


def waits(table: FromClause) -> ColumnElement[bool]:
    """That a job waits, in the words of the index of those that do: databases compare them."""
    return table.c.state.in_([literal_column("'queued'"), literal_column("'recovering'")])


def index_of_waiting() -> Index:
    """Have `metadata` know the index that the queue is read by.

    It is none of the others, as naming an option of PostgreSQL's loads all that SQLAlchemy has for it.
    """
    columns = (jobs.c.cluster, jobs.c.user, jobs.c.priority.desc(), jobs.c.id)
    return Index("ix_jobs_waiting", *columns, sqlite_where=waits(jobs), postgresql_where=waits(jobs))


usage = Table(
    "usage",
    metadata,
    Column("cluster", ForeignKey("clusters.name"), primary_key=True),
    Column("user", String, primary_key=True),
    Column("device_s", Float, nullable=False),  # what ended attempts took, decayed to
    Column("as_of", Float, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("submission_id", String, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", Words, nullable=False),
    UniqueConstraint("submission_id"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("at", Float, nullable=False),
    Column("from_state", String),
    Column("to_state", String, nullable=False),
    Column("reason", Words, nullable=False),
    Index(None, "job", "id"),
)
