"""How measurements are printed: tables that say on what machine they were made, and by which command."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.benchmarks import loops
from tests.device import DEVICE

WIDTH = 110
NAMES = {"training", "loop", "option", "model", "at once"}
"""Columns that hold words."""

ON_A_CPU = "On a CPU these figures say nothing of a GPU."


def table(title: str, *columns: str, note: str = "") -> Table:
    """A table whose caption names machine, versions and command."""
    facts = f"{loops.machine(DEVICE)}; python -m tests.gpu --device {DEVICE.type}"
    caption = [note, facts, ON_A_CPU if DEVICE.type == "cpu" else ""]
    made = Table(title=title, caption="\n".join(line for line in caption if line))
    for column in columns:
        made.add_column(column, justify="left" if column in NAMES else "right")
    return made


def show(made: Table) -> None:
    """Print it as wide in a file as on a screen."""
    Console(width=WIDTH).print(made)


def ratio(value: float, bar: float) -> str:
    """A ratio, and on a GPU whether it reaches its bar."""
    if DEVICE.type == "cpu":
        return f"{value:.2f}"
    return f"{value:.2f} (≥ {bar:g} {loops.mark(value >= bar)})"
