"""Whether the Ray node or the dispatcher of this container works: `python healthcheck.py node`, or `dispatcher`."""

import json
import os
import socket
import subprocess
import sys
import urllib.request

AGENT_PORT = os.environ.get("RAY_AGENT_PORT", "52365")
"""Where Ray's agent on every node listens, unless it was started with another `--dashboard-agent-listen-port`."""

TIMEOUT_S = 15


def check_node() -> None:
    """Raise OSError unless this node's raylet, and on the head its control store, answer."""
    urllib.request.urlopen(f"http://127.0.0.1:{AGENT_PORT}/api/healthz", timeout=TIMEOUT_S).close()


def check_dispatcher() -> None:
    """Raise LookupError unless a dispatcher of this host works for the queue."""
    printed = subprocess.run(["raygen", "status", "-o", "json"], stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True)
    found = json.loads(printed.stdout)["dispatchers"]
    if not any(each["alive"] and each["host"] == socket.gethostname() for each in found):
        raise LookupError(f"no dispatcher of {socket.gethostname()} is alive")


if __name__ == "__main__":
    try:
        {"node": check_node, "dispatcher": check_dispatcher}[sys.argv[1]]()
    except (OSError, LookupError, ValueError, subprocess.SubprocessError) as error:
        sys.exit(f"unhealthy: {error}")
