"""The application: every command, and how errors become one line and an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import (
    cache,
    catalog,
    changes,
    cluster,
    console,
    evaluation,
    inspection,
    progress,
    queue,
    results,
    train,
    tune,
)
from raygen import files
from raygen.data.progress import heard_by
from raygen.errors import InputError, RaygenError, RaygenWarning, RunInterruptedError


class _Group(TyperGroup):
    """Turns errors into one red line and their documented exit code, for the terminal and for tests alike."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit."""
        try:
            with warnings.catch_warnings(), progress.shown("fetching images") as tell, heard_by(tell):
                warnings.simplefilter("always", RaygenWarning)
                warnings.showwarning = _shown_by(warnings.showwarning)
                _check_text(sys.argv[1:] if args is None else args)
                code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except RaygenError as error:
            console.error(str(error))
            sys.exit(error.exit_code)
        except typer.TyperException as error:
            if message := error.format_message():  # none if help was shown in the place of a missing command
                console.error(f"{message} (--help shows what there is)")
            sys.exit(InputError.exit_code)
        except OSError as error:
            if error.filename is None:
                raise
            console.error(f"{error.filename}: {error.strerror}")
            sys.exit(InputError.exit_code)
        except typer.Abort:
            sys.exit(RunInterruptedError.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def _check_text(args: Sequence[str]) -> None:
    """Raise InputError for an argument of other bytes than text: no document can hold it, and no name is one."""
    for arg in args:
        if not files.is_text(arg):
            raise InputError(f"{arg} is not in UTF-8; give the file or folder another name, or a link that has one")


def _shown_by(others: Callable[..., None]) -> Callable[..., None]:
    """What shows a warning of ours as one yellow line, each once, and others in their form."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **how: Any) -> None:
        if not issubclass(category, RaygenWarning):
            others(files.printable(str(message)), category, *place, **how)
        elif str(message) not in shown:
            shown.add(str(message))
            console.warn(str(message))

    return show


def _version(wanted: bool) -> None:
    if wanted:
        console.show(f"raygen {version('raygen')}")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train and tune autoencoders, VAEs and GANs on Ray."""


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 the job failed, 2 usage or bad input, 3 no job would start (status --check), "
    "130 interrupted.",
)
app.callback()(_options)
app.command("tune")(tune.tune)
app.command("train")(train.train)
app.command("show")(results.show)
app.command("get")(results.get)
app.command("ls")(queue.list_jobs)
app.command("watch")(queue.watch)
app.command("logs")(queue.logs)
app.command("wait")(queue.wait)
app.command("cancel")(changes.cancel)
app.command("retry")(changes.retry)
app.command("priority")(changes.priority)
app.command("hold")(changes.hold)
app.command("release")(changes.release)
app.command("rm")(changes.remove)
app.command("up")(cluster.up)
app.command("down")(cluster.down)
app.command("status")(cluster.status)
app.command("dispatch")(cluster.dispatch)
nodes = typer.Typer(no_args_is_help=True, help="Declare the nodes that a cluster's autoscaler can add.")
nodes.command("set")(cluster.set_nodes)
nodes.command("unset")(cluster.unset_nodes)
app.add_typer(nodes, name="cluster")
cached = typer.Typer(invoke_without_command=True)
cached.callback()(cache.show)
cached.command("prune")(cache.prune)
app.add_typer(cached, name="cache")
app.command("sample")(inspection.sample)
app.command("reconstruct")(inspection.reconstruct)
app.command("restore")(inspection.restore)
app.command("interpolate")(inspection.interpolate)
app.command("encode")(inspection.encode)
app.command("decode")(inspection.decode)
app.command("map")(inspection.draw_map)
app.command("score")(inspection.score)
app.command("evaluate")(evaluation.evaluate)
app.command("compare")(evaluation.compare)
app.command("models")(catalog.models)
app.command("datasets")(catalog.datasets)
app.command("spaces")(catalog.spaces)


def main() -> None:
    """Run the command that the person typed."""
    console.accept_all()
    app(prog_name="raygen")
