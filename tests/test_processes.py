"""A process is told from another that has its number, whatever happens to the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raygen import processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def identity(pid: int) -> str:
    found = processes.identity(pid)
    assert found is not None
    return found


def test_a_process_keeps_its_identity_and_shares_it_with_no_other(sleeper: subprocess.Popen[bytes]) -> None:
    known = identity(sleeper.pid)
    assert known == identity(sleeper.pid)
    assert known != identity(os.getpid())
    assert processes.is_running(sleeper.pid, known)
    assert not processes.is_running(os.getpid(), known), "the number belongs to another"


@pytest.mark.parametrize("step_s", [1, -1, 86400])
def test_a_step_of_the_clock_changes_no_identity(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    known = identity(sleeper.pid)
    stepped, boot_time = time.time() + step_s, psutil.boot_time() + step_s
    monkeypatch.setattr(time, "time", lambda: stepped)
    # What Linux says of the machine's start moves with the clock, and with it every time that a process was started.
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: boot_time)
    assert psutil.Process(sleeper.pid).create_time() == pytest.approx(stepped, abs=60)
    assert processes.is_running(sleeper.pid, known)


def test_one_that_has_ended_does_not_run_even_if_it_is_not_forgotten_yet(sleeper: subprocess.Popen[bytes]) -> None:
    known = identity(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert processes.identity(sleeper.pid) == known
    assert not processes.is_running(sleeper.pid, known)
    sleeper.wait()
    assert processes.identity(sleeper.pid) is None
    assert not processes.is_running(sleeper.pid, known)


def test_one_that_was_suspended_is_told(sleeper: subprocess.Popen[bytes]) -> None:
    assert not processes.is_stopped(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    assert processes.is_stopped(sleeper.pid)
    assert processes.is_running(sleeper.pid, identity(sleeper.pid))


def test_numbers_of_another_machine_or_another_start_mean_nothing_here() -> None:
    known = identity(os.getpid())
    assert processes.is_of_here(known)
    boot, _, rest = known.partition("/")
    other = f"{'0' * len(boot)}/{rest}"
    assert not processes.is_of_here(other)
    assert not processes.is_running(os.getpid(), other)
    assert not processes.is_of_here("")


def test_one_that_the_system_hides_is_told_from_one_that_is_gone(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not processes.is_hidden(sleeper.pid)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").touch()
    monkeypatch.setattr(processes, "PROC", tmp_path)  # which shows this user's processes alone, as hidepid=2 does
    assert not processes.is_hidden(sleeper.pid), "of one's own it is known"

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert processes.is_hidden(sleeper.pid)
    monkeypatch.undo()
    sleeper.kill()
    sleeper.wait()
    assert not processes.is_hidden(sleeper.pid)
