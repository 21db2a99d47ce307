"""Starts the driver of a run as a process of its own, which keeps Ray and its noise out of the caller's."""

from __future__ import annotations

import subprocess
import sys

from raygen.cluster import session
from raygen.errors import JobFailedError, RaygenError, RunInterruptedError
from raygen.runs import Run

STDERR = 2
"""The file descriptor of standard error."""


class Driver:
    """The running driver of a run; closing its standard input lets it stop."""

    def __init__(self, run: Run, address: str | None, *, verbose: bool = False) -> None:
        self.run = run
        command = [sys.executable, "-m", "raygen.cluster.driver", str(run.folder), *([address] if address else [])]
        with run.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                # Never to standard output, which is the result's alone.
                stdout=STDERR if verbose else log,
                stderr=STDERR if verbose else log,
                # A Ctrl-C in the terminal must reach the driver once, through its starter, and no trial at all.
                start_new_session=True,
                env={**session.environment(), "PYTHONUNBUFFERED": "1"},
            )

    def is_alive(self) -> bool:
        """Whether the driver still runs."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait for the driver's end."""
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def ask_to_stop(self) -> None:
        """Let every trial end at its next sync, with a checkpoint."""
        self.run.ask_to_stop()

    def kill(self) -> None:
        """End the driver at once; Ray's processes end with it."""
        self._process.kill()
        self.wait()

    def check(self) -> None:
        """Wait for the end, and raise what the run ended with, unless it finished."""
        self.wait()
        status = self.run.status()
        if status.state == "finished":
            return
        if status.state == "interrupted":
            raise RunInterruptedError(f"{self.run.name} was interrupted: {status.reason}")
        if status.state == "failed":
            raise _failure(status.reason, status.exit_code)
        raise JobFailedError(
            f"{self.run.name}: its driver ended with code {self._process.returncode}; see {self.run.log}"
        )


def _failure(reason: str, exit_code: int) -> RaygenError:
    failure = JobFailedError(reason)
    failure.exit_code = exit_code
    return failure
