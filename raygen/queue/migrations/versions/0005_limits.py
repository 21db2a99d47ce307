"""Jobs have time limits and can be held, users take turns, and a dispatcher says whose jobs it starts."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns, empty for what there is, and what users have used lately."""
    op.add_column("clusters", sa.Column("held_at", sa.Float))
    op.add_column("clusters", sa.Column("held_by", sa.String))
    # A dispatcher of before knows nothing of holds and users: it cannot register any more.
    op.execute("ALTER TABLE dispatchers RENAME COLUMN started_at TO registered_at")
    op.add_column("dispatchers", sa.Column("user", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("dispatchers", sa.Column("process", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("dispatchers", sa.Column("away", sa.JSON(none_as_null=True)))
    op.add_column("jobs", sa.Column("restarts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("held_at", sa.Float))
    op.add_column("jobs", sa.Column("time_limit_s", sa.Float))
    op.add_column("jobs", sa.Column("started_at", sa.Float))
    op.add_column("jobs", sa.Column("ran_s", sa.Float, nullable=False, server_default="0"))
    op.execute(
        "UPDATE jobs SET started_at = (SELECT attempts.started_at FROM attempts WHERE attempts.job = jobs.id "
        "AND attempts.number = jobs.attempt) WHERE state IN ('starting', 'running')"
    )
    op.create_table(
        "usage",
        sa.Column("cluster", sa.String, nullable=False),
        sa.Column("user", sa.String, nullable=False),
        sa.Column("device_s", sa.Float, nullable=False),
        sa.Column("as_of", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("cluster", "user", name="pk_usage"),
        sa.ForeignKeyConstraint(["cluster"], ["clusters.name"], name="fk_usage_cluster_clusters"),
    )
    waits = sa.text("state IN ('queued', 'recovering')")
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["cluster", "user", sa.text("priority DESC"), "id"],
        sqlite_where=waits,
        postgresql_where=waits,
    )
