"""A Ray head on this machine, which outlives whoever started it."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from raygen import machine, processes
from raygen.capacity import Capacity
from raygen.cluster import background, gpus, session
from raygen.cluster.session import LOCALHOST
from raygen.errors import ServiceError
from raygen.files import replacing

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

LOG_BYTES = 16 * 2**20
"""What each of Ray's own logs may hold; half a gigabyte is its default."""


class _Started(BaseModel):
    """What is written down of a head that was started."""

    model_config = ConfigDict(strict=True, extra="forbid")

    pid: int
    process: str  # its identity
    address: str
    gpus: int
    cpus: int


class Head:
    """The Ray head that belongs to a state folder of this machine, which is there before a head is started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / "head.lock")  # one object, which whoever holds it may take again

    @property
    def log(self) -> Path:
        """What Ray printed when it was started."""
        return self._folder / "head.log"

    @property
    def address(self) -> str | None:
        """The address of its dashboard while it runs."""
        running = self._running()
        return running.address if running else None

    @property
    def capacity(self) -> Capacity | None:
        """The devices that it was started with, while it runs."""
        running = self._running()
        if running is None:
            return None
        return Capacity.of_machine(gpus=running.gpus, cpus=running.cpus, where="this machine")

    def token(self) -> str:
        """What the head asks of every client, made once; only this user can read it.

        Raises ServiceError if it can be neither read nor made.
        """
        path = self._folder / "token"
        if (known := _token(path)) is not None:
            return known
        with self._alone():
            return _token(path) or _new_token(path)  # another process may have made it meanwhile

    def environment(self) -> dict[str, str]:
        """What the head and its clients need in their environment before they import ray."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token()}
        return {**session.on_loopback(), **session.passed(session.environment()), **own}

    def ensure(self, capacity: Capacity) -> str:
        """Start it with these devices unless it runs; returns the address of its dashboard.

        Raises ServiceError where it does not start.
        """
        if (address := self.address) is not None:
            return address
        with self._alone():
            return self.address or self._start(capacity)

    def stop(self) -> None:
        """End it with all its processes, jobs included; does nothing where none runs.

        Raises ServiceError if somebody is starting it for a minute.
        """
        with self._alone():
            self._stop()

    def remove_log(self, submission_id: str) -> None:
        """Remove what a submission has printed, which Ray keeps when it forgets it."""
        if (folder := machine.known_temporary_folder(self._folder)) is not None:
            for log in folder.glob(f"ray/session_2*/logs/job-driver-{glob.escape(submission_id)}.log"):
                with suppress(OSError):
                    log.unlink()

    @property
    def _file(self) -> Path:
        return self._folder / "head.json"

    def _started(self) -> _Started | None:
        """What is known of the last head that was started; a damaged file tells nothing.

        Raises ServiceError if the file cannot be read now: a head may run.
        """
        content = _content(self._file)
        with suppress(ValidationError):
            return None if content is None else _Started.model_validate_json(content)
        return None

    def _running(self) -> _Started | None:
        started = self._started()
        return started if started and processes.is_running(started.pid, started.process) else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else starts or ends it meanwhile."""
        try:
            with self._lock.acquire(timeout=START_TIMEOUT_S + STOP_TIMEOUT_S):
                yield
        except Timeout as error:
            raise ServiceError(f"another process is starting or ending Ray in {self._folder}; try again") from error
        except OSError as error:
            raise ServiceError(f"Ray cannot be started or ended on this machine: {error}") from error

    def _stop(self) -> None:
        if (running := self._running()) is not None:
            _end(running.pid)
        self._end_leftovers()
        self._file.unlink(missing_ok=True)
        machine.remove_temporary_folder(self._folder)

    def _start(self, capacity: Capacity) -> str:
        self._end_leftovers()
        ports = _free_ports(3)
        # Its jobs look there for the cluster that they belong to. Ray opens it to all; what is around it is private.
        ray_folder = machine.temporary_folder(self._folder) / "ray"
        for old in sorted(ray_folder.glob("session_2*"))[:-1]:  # the last one may tell why it died
            shutil.rmtree(old, ignore_errors=True)
        address = f"http://{LOCALHOST}:{ports[0]}"
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--num-cpus={capacity.cpus}", f"--num-gpus={capacity.gpus}", "--port=0"),
            *(f"--node-ip-address={LOCALHOST}", f"--dashboard-host={LOCALHOST}", f"--dashboard-port={ports[0]}"),
            # Ports of Ray's that are fixed unless named: another head on this machine may have them.
            *(f"--dashboard-agent-listen-port={ports[1]}", f"--ray-client-server-port={ports[2]}"),
            *("--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={ray_folder}"),
        ]
        environment = {"RAY_ROTATION_MAX_BYTES": str(LOG_BYTES), **self.environment()}
        if capacity.gpus:
            environment |= gpus.variables_for_head(gpus.here())
        log_began = background.size(self.log)
        process = background.start(command, log=self.log, folder=self._folder, environment=environment)
        try:
            self._write_down(process.pid, address, capacity)
        except OSError:
            _end(process.pid)
            raise
        self._wait_until_it_answers(process, address, log_began)
        return address

    def _write_down(self, pid: int, address: str, capacity: Capacity) -> None:
        identity = processes.identity(pid)
        if identity is None:
            return  # it has ended already
        started = _Started(pid=pid, process=identity, address=address, gpus=capacity.gpus, cpus=capacity.cpus)
        with replacing(self._file, writer=str(os.getpid())) as partial:
            partial.write_text(started.model_dump_json() + "\n", encoding="utf-8")

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes], address: str, log_began: int) -> None:
        import requests

        deadline = time.monotonic() + START_TIMEOUT_S
        asking = requests.Session()
        asking.trust_env = False  # whatever proxy this process was started with must not see the token
        asking.headers["Authorization"] = f"Bearer {self.token()}"
        while True:
            with suppress(requests.RequestException):
                if asking.get(f"{address}/api/version", timeout=5).ok:
                    return
            if process.poll() is not None:
                reason = background.last_line(self.log, log_began) or f"it ended with exit code {process.returncode}"
                raise ServiceError(f"Ray did not start on this machine: {reason} (see {self.log})")
            if time.monotonic() > deadline:
                self._stop()
                raise ServiceError(
                    f"Ray did not start on this machine within {START_TIMEOUT_S:.0f} s (see {self.log})"
                )
            time.sleep(0.1)

    def _end_leftovers(self) -> None:
        """End what a head has left that was killed, or of which nothing was written down: its children go on."""
        sessions = set()
        started = self._started()
        # Whatever its children are in has its number, which the system gives to nobody else while one is left.
        if started and processes.is_of_here(started.process) and _is_left(started):
            sessions.add(started.pid)
        named = machine.known_temporary_folder(self._folder)
        if named is not None:
            sessions |= {session for each in psutil.process_iter() if (session := _session_of_head(each, named))}
        _kill([each for each in psutil.process_iter() if _session(each) in sessions and _is_ray(each)])


def _is_left(started: _Started) -> bool:
    """Whether no other process has a head's number, so that what bears it as its session's is that head's."""
    return processes.identity(started.pid) in (None, started.process)


def _content(path: Path) -> bytes | None:
    """What a file of the state folder holds; None if there is none. Raises ServiceError if that cannot be read now."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"cannot read {path}: {error.strerror}") from error


def _token(path: Path) -> str | None:
    """A token that was made before; None if there is none, or it was damaged."""
    content = _content(path)
    if content is None:
        return None
    text = content.decode("utf-8", errors="replace")
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _new_token(path: Path) -> str:
    token = secrets.token_hex(32)
    with replacing(path, writer=str(os.getpid())) as partial:
        partial.touch(mode=0o600)
        partial.write_text(token, encoding="utf-8")
    return token


def _session(process: psutil.Process) -> int | None:
    with suppress(ProcessLookupError, PermissionError):
        return os.getsid(process.pid)
    return None


def _is_ray(process: psutil.Process) -> bool:
    return any("ray" in part for part in _command(process))


def _session_of_head(process: psutil.Process, folder: Path) -> int | None:
    """The session of a head that has this folder for itself, if a process is one of its parts."""
    has_folder = any(part.startswith("--") and f"={folder}/" in part for part in _command(process))
    return _session(process) if has_folder else None


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return list(process.cmdline())
    return []


def _end(pid: int) -> None:
    """End a head as it wishes to be ended, and what is left of it after a while as it does not."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
        _kill(alive)


def _kill(found: list[psutil.Process]) -> None:
    for process in found:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()
    psutil.wait_procs(found, timeout=STOP_TIMEOUT_S)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now; all are held until the last is found, so they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOCALHOST, 0))
        return [each.getsockname()[1] for each in sockets]
