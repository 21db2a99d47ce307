"""Two consoles: data on standard output, talk on standard error.

Nothing that is printed is markup, wherever it comes from, and what would do something to a terminal is shown in
escapes. So all that a person sees goes through this file, and a test keeps it so.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import Task, TextColumn
from rich.style import Style
from rich.text import Text

from raygen import files

if TYPE_CHECKING:
    from rich.status import Status

PIPED_WIDTH = 200
"""Columns for tables that go to a file or a pipe, where Rich would assume 80 and cut."""

COLOURS = re.compile("\x1b\\[[0-9;:]*m")
"""What colours lines, as Ray does those of its log."""


class Screen(Console):
    """A Rich console to which every string is text."""

    def __init__(self, *, stderr: bool) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = PIPED_WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        """What Rich makes of each string that it prints, in a cell of a table too."""
        return super().render_str(files.printable(text), **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A spinner with some words, which Rich would take for markup."""
        return super().status(text(status) if isinstance(status, str) else status, **options)


class Words(TextColumn):
    """A column of a progress bar with words, which Rich would take for markup."""

    def render(self, task: Task) -> Text:
        """The words for a task."""
        return text(self.text_format.format(task=task))


def text(*parts: str | Text | tuple[str, str | Style]) -> Text:
    """A line of parts, each as it is or with a style; no other Text is made, as this one has its escapes."""
    return Text.assemble(*map(_printable, parts))


def _printable(part: str | Text | tuple[str, str | Style]) -> str | Text | tuple[str, str | Style]:
    if isinstance(part, tuple):
        return files.printable(part[0]), part[1]
    return files.printable(part) if isinstance(part, str) else part


def lines(*texts: Text) -> Text:
    """Lines one below the other."""
    return Text("\n").join(texts)


def data() -> Screen:
    """The console for data."""
    return Screen(stderr=False)


def show(data: RenderableType) -> None:
    """Print data for people to standard output, a string as one line however long."""
    Screen(stderr=False).print(data, soft_wrap=isinstance(data, str))


def show_json(data: Any) -> None:
    """Print data for programs to standard output, and nothing else beside it; numbers that JSON has not are null."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def show_plain(lines: str) -> None:
    """Print lines that others wrote, of a log or a file, to standard output: tabs stay, colours go."""
    print("\n".join(map(_uncoloured, lines.split("\n"))), flush=True)


def _uncoloured(line: str) -> str:
    return "\t".join(map(files.printable, COLOURS.sub("", line).split("\t")))


def talk() -> Screen:
    """The console for all that is not data: plans, progress, warnings."""
    return Screen(stderr=True)


def say(*lines: str | Text) -> None:
    """Print lines to standard error, however long they are."""
    for line in lines:
        talk().print(text(line), soft_wrap=True)


def say_plain(line: str) -> None:
    """Print a line that others wrote, of a log, to standard error: tabs stay, colours go."""
    print(_uncoloured(line), file=sys.stderr, flush=True)


def warn(problem: Exception | str) -> None:
    """Print one yellow line to standard error, about something that does not stop the command."""
    say(text((f"raygen: {problem}", "yellow")))


def error(message: str) -> None:
    """Print one red line to standard error."""
    say(text((f"raygen: {message}", "red")))


def confirm(question: str) -> None:
    """Ask for a yes; raises typer.Abort on anything else."""
    typer.confirm(files.printable(question), abort=True, err=True)


def accept_all() -> None:
    """Let standard output show what its encoding lacks in escapes, as standard error does."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


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
