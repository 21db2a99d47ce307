"""An ended job tells its best value, so that a list of jobs reads no records."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns, empty for the jobs that there are."""
    op.add_column("jobs", sa.Column("objective", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("jobs", sa.Column("best_value", sa.Float))
