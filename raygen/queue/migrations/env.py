"""What Alembic runs: the migrations, on the connection that `upgrade` was given."""

from alembic import context

from raygen.queue import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
with context.begin_transaction():
    context.run_migrations()
