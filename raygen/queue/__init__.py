"""The durable queue in front of Ray: a record of every job, and the dispatcher that starts jobs in order."""
