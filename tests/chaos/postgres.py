"""A PostgreSQL of one's own, which may be restarted, or end in the middle of everything."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

START_S = 60


def find() -> str | None:
    """Where PostgreSQL's programs are, if it is installed."""
    if (found := shutil.which("initdb")) is not None:
        return str(Path(found).parent)
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return str(installed[-1].parent) if installed else None


class Postgres:
    """A server with one empty database."""

    def __init__(self) -> None:
        """Make and start it; it listens on this machine alone."""
        programs = find()
        assert programs, "PostgreSQL is not installed"
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="raygen-postgres-"))
        # It refuses root.
        self._as_server = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as_server:
            shutil.chown(self._folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._run("initdb", "--username=raygen", "--auth=trust", "--no-sync")
        self.start()
        self.url = f"postgresql+psycopg://raygen@localhost:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and recover what it was doing."""
        listening = f"-c listen_addresses=localhost -c port={self._port} -c unix_socket_directories={self._folder}"
        self._run("pg_ctl", "--wait", f"--timeout={START_S}", f"--log={self._folder}/log", "start", "-o", listening)

    def stop(self) -> None:
        """End it at once, as a loss of power would."""
        self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    def close(self) -> None:
        """End it for good."""
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        # Its output is a file's, as the server would keep a pipe open for as long as it lives.
        with (self._folder / "output").open("ab") as output:
            subprocess.run(
                [*self._as_server, f"{self._programs}/{program}", f"--pgdata={self._folder / 'data'}", *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )
