"""The queue's tables. What they were in earlier versions, and how they became these, is in `migrations/`."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

VERSION = "0002"
"""The newest migration: what a database must be at to be these tables."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

clusters = Table(
    "clusters",
    metadata,
    Column("name", String, primary_key=True),
    Column("unreachable_since", Float),
    Column("problem", Text, nullable=False),
    Column("nodes", JSON(none_as_null=True)),  # null until a dispatcher has seen the cluster
    Column("lost_nodes", JSON(none_as_null=True)),
    Column("on_demand", JSON(none_as_null=True)),  # what a person has declared
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cluster", ForeignKey("clusters.name"), nullable=False),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("lease_until", Float, nullable=False),
    sqlite_autoincrement=True,  # an id is never used again, so a late process cannot be taken for another
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("token", String, nullable=False),  # keeps jobs apart that had the same name at different times
    Column("folder", Text, nullable=False),
    Column("kind", String, nullable=False),
    Column("model", String, nullable=False),
    Column("data", Text, nullable=False),
    Column("user", String, nullable=False),
    Column("cluster", ForeignKey("clusters.name"), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("retries", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("losses", Integer, nullable=False),  # attempts lost since it was last queued
    Column("owner", ForeignKey("dispatchers.id", ondelete="SET NULL")),
    Column("submitted_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("not_before", Float, nullable=False),
    Column("cancelled_at", Float),  # when a person asked for it
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

attempts = Table(
    "attempts",
    metadata,
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("submission_id", String, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", Text, nullable=False),
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
    Column("reason", Text, nullable=False),
    Index(None, "job", "id"),
)
