"""Devices belong to nodes: what a cluster has and what a job takes, node by node."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Replace sums of devices by nodes, and by processes that each fit one."""
    for name in ("nodes", "lost_nodes", "on_demand"):
        op.add_column("clusters", sa.Column(name, sa.JSON()))
    for name in ("gpus", "cpus"):
        op.drop_column("clusters", name)
    op.add_column("jobs", sa.Column("processes", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("fewest_processes", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("gpus_each", sa.Float(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("cpus_each", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("node_timeout_s", sa.Float()))
    op.add_column("jobs", sa.Column("places", sa.JSON()))
    op.add_column("jobs", sa.Column("pending", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("unplaced_since", sa.Float()))
    # Which of a job's devices belong together was not written down: of GPUs it was one to a process.
    op.execute("UPDATE jobs SET processes = CAST(gpus AS INTEGER) WHERE gpus > 1")
    op.execute(
        "UPDATE jobs SET fewest_processes = processes, gpus_each = gpus / processes, cpus_each = cpus / processes"
    )
    for name in ("gpus", "cpus"):
        op.drop_column("jobs", name)
