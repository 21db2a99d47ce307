"""A Ray head on this machine, which outlives whoever started it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from raygen.capacity import Capacity
from raygen.cluster import background, session
from raygen.errors import ServiceError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class _Started:
    """What is written down of a head that was started."""

    pid: int
    created_at: float
    address: str

    def process(self) -> psutil.Process | None:
        """Its process, unless that has ended and the number belongs to another."""
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.created_at and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None


class Head:
    """The Ray head that belongs to a service folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def log(self) -> Path:
        """What Ray printed when it was started."""
        return self._folder / "head.log"

    @property
    def address(self) -> str | None:
        """The address of its dashboard while it runs."""
        started = self._started()
        return started.address if started and started.process() else None

    def token(self) -> str:
        """What the head asks of every client, made once; only this user can read it."""
        path = self._folder / "token"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.touch(mode=0o600)
            partial.write_text(secrets.token_hex(32), encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)  # whoever links first has made the token
            partial.unlink()
        return path.read_text(encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """What the head and its clients need in their environment before they import ray."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token()}
        others = {name: value for name, value in session.environment().items() if name != "RAY_ADDRESS"}
        return {**others, **own}

    def ensure(self, capacity: Capacity) -> str:
        """Start it with these devices unless it runs; returns the address of its dashboard.

        Raises ServiceError where it does not start.
        """
        return self.address or self._start(capacity)

    def stop(self) -> None:
        """End it with all its processes, jobs included; does nothing where none runs."""
        started = self._started()
        process = started.process() if started else None
        if process is not None:
            _end(process)
        (self._folder / "head.json").unlink(missing_ok=True)
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    @property
    def _ray_folder(self) -> Path:
        """Where Ray keeps its own files: each head's jobs look there for the cluster that they belong to.

        Sockets in it may have names of 107 bytes at most, which a service folder's own name could use up.
        """
        return Path("/tmp") / f"raygen-{os.getuid()}-{hashlib.sha256(bytes(self._folder)).hexdigest()[:8]}"

    def _started(self) -> _Started | None:
        try:
            return _Started(**json.loads((self._folder / "head.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def _start(self, capacity: Capacity) -> str:
        self._end_leftovers()
        ports = _free_ports(3)
        address = f"http://{LOCALHOST}:{ports[0]}"
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--num-cpus={capacity.cpus}", f"--num-gpus={capacity.gpus}", "--port=0"),
            *(f"--dashboard-host={LOCALHOST}", f"--dashboard-port={ports[0]}"),
            # Ports of Ray's that are fixed unless named: another head on this machine may have them.
            *(f"--dashboard-agent-listen-port={ports[1]}", f"--ray-client-server-port={ports[2]}"),
            *("--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self._ray_folder}"),
        ]
        process = background.start(command, log=self.log, folder=self._folder, environment=self.environment())
        created_at = psutil.Process(process.pid).create_time()
        started = {"pid": process.pid, "created_at": created_at, "address": address}
        (self._folder / "head.json").write_text(json.dumps(started) + "\n", encoding="utf-8")
        self._wait_until_it_answers(process, address)
        return address

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes], address: str) -> None:
        import requests

        deadline = time.monotonic() + START_TIMEOUT_S
        headers = {"Authorization": f"Bearer {self.token()}"}
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{address}/api/version", headers=headers, timeout=5).ok:
                    return
            if process.poll() is not None:
                raise ServiceError(f"Ray did not start on this machine: {_last_line(self.log)} (see {self.log})")
            if time.monotonic() > deadline:
                self.stop()
                raise ServiceError(
                    f"Ray did not start on this machine within {START_TIMEOUT_S:.0f} s (see {self.log})"
                )
            time.sleep(0.1)

    def _end_leftovers(self) -> None:
        """End what a head that was killed has left: its children do not notice."""
        started = self._started()
        if started is not None:
            _kill([process for process in psutil.process_iter() if _belongs(process, started)])


def _belongs(process: psutil.Process, started: _Started) -> bool:
    """Whether a process is of a head's session, which bears the head's number, and not of a later one's."""
    try:
        is_ray = any("ray" in part for part in process.cmdline())
        return os.getsid(process.pid) == started.pid and process.create_time() >= started.created_at and is_ray
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
        return False


def _end(process: psutil.Process) -> None:
    """End a head as it wishes to be ended, and what is left of it after a while as it does not."""
    family = [process, *process.children(recursive=True)]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    _kill(alive)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now; all are held until the last is found, so they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOCALHOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
