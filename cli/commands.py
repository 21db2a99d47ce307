"""Every command by name, imported when it is typed: who lists jobs does not wait for what trains and judges models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

import typer
from typer.core import TyperCommand, TyperGroup

WHERE = {
    "tune": "tune.tune",
    "train": "train.train",
    "show": "results.show",
    "get": "results.get",
    "ls": "listing.list_jobs",
    "watch": "queue.watch",
    "logs": "queue.logs",
    "wait": "queue.wait",
    "cancel": "changes.cancel",
    "retry": "changes.retry",
    "priority": "changes.priority",
    "hold": "changes.hold",
    "release": "changes.release",
    "rm": "changes.remove",
    "up": "cluster.up",
    "down": "cluster.down",
    "status": "cluster.status",
    "dispatch": "cluster.dispatch",
    "cluster": "cluster.nodes",
    "cache": "cache.cached",
    "sample": "inspection.sample",
    "reconstruct": "inspection.reconstruct",
    "restore": "inspection.restore",
    "interpolate": "inspection.interpolate",
    "encode": "inspection.encode",
    "decode": "inspection.decode",
    "map": "inspection.draw_map",
    "score": "inspection.score",
    "evaluate": "evaluation.evaluate",
    "compare": "evaluation.compare",
    "models": "catalog.models",
    "datasets": "catalog.datasets",
    "spaces": "catalog.spaces",
}
"""The file of this package, and in it the function or the group of functions, in the order of the help."""


class Commands(Mapping[str, TyperCommand | TyperGroup]):
    """What Typer makes of each command."""

    def __getitem__(self, name: str) -> TyperCommand | TyperGroup:
        file, _, what = WHERE[name].partition(".")
        found = getattr(import_module(f"cli.{file}"), what)
        if isinstance(found, typer.Typer):
            return typer.main.get_group(found)
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        command = typer.main.get_command(alone)
        assert isinstance(command, TyperCommand)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(WHERE)

    def __len__(self) -> int:
        return len(WHERE)
