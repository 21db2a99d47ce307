"""Two consoles: data on standard output, talk on standard error."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from raygen import files

PIPED_WIDTH = 200
"""Columns for tables that go to a file or a pipe, where Rich would assume 80 and cut."""


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def data() -> Console:
    """The console for data."""
    return _console(stderr=False)


def show(data: RenderableType) -> None:
    """Print data for people to standard output."""
    _console(stderr=False).print(data)


def show_json(data: Any) -> None:
    """Print data for programs to standard output, and nothing else beside it."""
    print(json.dumps(data, indent=2))


def talk() -> Console:
    """The console for all that is not data: plans, progress, warnings."""
    return _console(stderr=True)


def say(line: str) -> None:
    """Print one line to standard error as it is: paths may hold what Rich would take for markup."""
    talk().print(Text(line), soft_wrap=True)


def warn(problem: Exception | str) -> None:
    """Print one yellow line to standard error, about something that does not stop the command."""
    talk().print(Text(files.printable(f"raygen: {problem}"), style="yellow"), soft_wrap=True)


def error(message: str) -> None:
    """Print one red line to standard error."""
    talk().print(Text(files.printable(f"raygen: {message}"), style="red"), soft_wrap=True)


@contextmanager
def holding_warnings() -> Iterator[None]:
    """Show the warnings of the block when it ends: a spinner would have them on its own line."""
    show = warnings.showwarning
    held: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as held:
            yield
    finally:
        for warning in held:
            show(warning.message, warning.category, warning.filename, warning.lineno)
