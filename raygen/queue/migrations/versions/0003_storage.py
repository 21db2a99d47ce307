"""A run is told by its storage and its name, not by a path."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Replace each job's folder by the storage that it is in, under the job's name."""
    op.alter_column("jobs", "folder", new_column_name="storage")
    op.execute("UPDATE jobs SET storage = substr(storage, 1, length(storage) - length(name) - 1)")
