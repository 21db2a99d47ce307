"""What people type for a cluster that is not the one that commands are for by themselves."""

from __future__ import annotations

import socket


def typed(command: str, cluster: str) -> str:
    """A command in backticks, as it must be typed to be for the cluster that the queue calls so, and where."""
    if "://" in cluster:
        return f"`{command} --address {cluster}`"
    host = cluster.removeprefix("local:")
    return f"`{command}`" if host == socket.gethostname() else f"`{command}` on {host}"
