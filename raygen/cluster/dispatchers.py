"""Registered dispatchers as processes of this machine: whether they run, and how they are ended."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

import psutil

from raygen import machine, processes
from raygen.queue.job import RegisteredDispatcher

STOP_TIMEOUT_S = 20.0
"""Seconds that processes have to end before they are killed."""


def runs(dispatcher: RegisteredDispatcher) -> bool:
    """Whether a dispatcher works: of one of this machine that is known at once, others have given signs of life.

    So has one of this machine that was suspended, for a while, or that the system hides from this user.
    """
    if dispatcher.host != socket.gethostname() or not processes.is_of_here(dispatcher.process):
        return dispatcher.is_alive
    if not processes.is_running(dispatcher.pid, dispatcher.process):
        return dispatcher.is_alive and processes.is_hidden(dispatcher.pid)
    return dispatcher.is_alive or not processes.is_stopped(dispatcher.pid)


def runs_here(dispatcher: RegisteredDispatcher) -> bool:
    """Whether a dispatcher works, and on this machine."""
    return dispatcher.host == socket.gethostname() and runs(dispatcher)


def owner(dispatcher: RegisteredDispatcher) -> str | None:
    """Whose process a dispatcher of this machine is; None if it is gone."""
    try:
        return machine.user_of(psutil.Process(dispatcher.pid).uids().real)
    except psutil.Error:
        return "another user" if processes.is_hidden(dispatcher.pid) else None


def ask_to_end(dispatchers: Sequence[RegisteredDispatcher]) -> list[psutil.Process]:
    """The processes of dispatchers of this machine, each of which was asked to end."""
    asked = []
    for each in dispatchers:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(each.pid)
            if processes.is_running(each.pid, each.process):
                process.terminate()
                asked.append(process)
    return asked


def end(asked: Sequence[psutil.Process]) -> None:
    """Wait for processes that were asked to end, and end those that do not."""
    _, alive = psutil.wait_procs(asked, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
