"""`raygen cache`: what lies in this user's cache, and what of it is removed."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import console, options, render
from cli.durations import parse_duration_s
from raygen.errors import InputError
from raygen.progress import in_words

OlderThan = Annotated[
    str | None, typer.Option(metavar="AGE", help="What was not used for so long: 90m, 12h, 30d.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="All that nobody uses right now.")]


def show(context: typer.Context, output: options.OutputOption = "table") -> None:
    """List what is cached on this machine: decoded images, downloaded data sets, networks to judge by."""
    if context.invoked_subcommand is not None:
        return
    from raygen.data import cache, cache_room, cached

    found, most_bytes = cached.found(), cache_room.bound_bytes()
    if output == "json":
        console.show_json([each.as_json() for each in found])
        return
    if found:
        console.show(render.cache_table(found))
    total = in_words(sum(each.size_bytes for each in found))
    console.say(f"{total} in {cache.folder()}, of which decoded images take {most_bytes / 1e9:g} GB at most")


def prune(older_than: OlderThan = None, everything: All = False) -> None:
    """Remove from the cache what was not used for some time; what somebody uses stays."""
    if (older_than is None) != everything:
        raise InputError("type how long it was not used, such as --older-than 30d, or --all")
    unused_for_s = 0.0 if older_than is None else parse_duration_s(older_than)
    from raygen.data import cached

    gone, kept = cached.prune(unused_for_s)
    for each in kept:
        console.warn(f"{each.name} stays: it is in use, or not yours to remove")
    freed = in_words(sum(each.size_bytes for each in gone))
    console.say(f"removed {len(gone)} of {len(gone) + len(kept)}, {freed}")


cached = typer.Typer(add_completion=False, invoke_without_command=True)
cached.callback()(show)
cached.command("prune")(prune)
