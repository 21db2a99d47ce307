"""Run a command where it sees no process, network or Ray of this machine but its own, and nothing outlives it."""

from __future__ import annotations

import os
import shutil
import subprocess

UNSHARE = [
    # Also ended with the process that has started it, however that ends.
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *(() if os.getuid() == 0 else ("--map-root-user",)),
    # The first process of a namespace takes over those that lose their parent. A shell waits for them as they end,
    # and stays for it as the command is not its last one.
    *("sh", "-c", '"$@"; exit $?', "sh"),
]
"""What comes before the command; whoever ends `unshare` ends all that the command has started."""


def why_not() -> str | None:
    """Why no command can be run so here, or None where it can."""
    for program in ("setpriv", "unshare", "mount"):
        if shutil.which(program) is None:
            return f"{program} (util-linux) is not installed"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None
