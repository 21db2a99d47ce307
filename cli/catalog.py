"""`raygen models`, `raygen datasets` and `raygen spaces`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import console, options, render
from cli.options import Output
from raygen import data as data_sets
from raygen import models as model_families
from raygen import space

SpaceName = Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one, to copy and edit.")]


def models(output: options.OutputOption = "table") -> None:
    """List the model families."""
    _show(model_families.names(), output)


def datasets(output: options.OutputOption = "table") -> None:
    """List the named data sets; a folder of images, a .npy or an .npz file serve as well."""
    _show(data_sets.names(), output)


def spaces(name: SpaceName = None, output: options.OutputOption = "table") -> None:
    """List the search spaces, or print one."""
    if name is None:
        _show(space.names(), output)
    elif output == "json":
        console.show_json(space.read(name).model_dump(mode="json"))
    else:
        console.show_plain(space.text(name).removesuffix("\n"))


def _show(names: dict[str, str], output: Output) -> None:
    if output == "json":
        console.show_json(names)
    else:
        console.show(render.name_table(names))
