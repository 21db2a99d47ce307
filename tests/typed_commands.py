"""A storage folder with its queue, and the commands that people type for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from raygen import machine
from raygen.cluster.head import Head
from raygen.queue.job import Job, JobState
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.storage import Storage

RAYGEN = Path(sys.executable).with_name("raygen")
CPUS = 2
PATIENCE_S = 120


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.1)


class Queue:
    """A storage folder, and what is typed and seen there."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.environment = {
            **os.environ,
            "RAYGEN_STORAGE": str(storage),
            "PATH": f"{RAYGEN.parent}:{os.environ['PATH']}",
        }
        self.started: list[subprocess.Popen[str]] = []

    @property
    def place(self) -> Storage:
        return Storage(self.storage)

    @property
    def store(self) -> Store:
        return Store.open(self.place)

    @property
    def head(self) -> Head:
        return Head(self.state)

    @property
    def state(self) -> Path:
        """What this machine keeps for the storage."""
        return machine.state_folder(self.place)

    def raygen(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and capture what it prints."""
        return subprocess.run(
            [RAYGEN, *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and leave it running, in a session of its own as in another terminal."""
        process = subprocess.Popen(
            [RAYGEN, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def job(self, name: str) -> Job:
        return self.store.find(name)

    def run(self, name: str) -> Run:
        return Run(self.place, name)

    def wait_for(self, name: str, *states: JobState) -> Job:
        wait_until(lambda: self.job(name).state in states, f"{name} to be {' or '.join(states)}")
        return self.job(name)

    def head_processes(self, *words: str) -> list[psutil.Process]:
        """The processes of its head, and of that head's jobs, whose command lines contain every word."""
        started = json.loads((self.state / "head.json").read_text())
        found = []
        for process in psutil.Process(started["pid"]).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    found.append(process)
        return found

    def kill_started(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


def ray_processes() -> set[int]:
    """Every process of Ray or Raygen on this machine, but this one."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.pid != os.getpid() and ("ray::" in line or "/ray" in line or "ray-dashboard" in line):
            found.add(process.pid)
    return found
