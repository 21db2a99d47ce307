"""The application: every command, and how errors become one line and an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import console, progress
from cli.commands import Commands
from raygen import files
from raygen.errors import InputError, RaygenError, RaygenWarning, RunInterruptedError
from raygen.progress import heard_by


class _Group(TyperGroup):
    """All commands; turns errors into one red line and their documented exit code, for the terminal and for tests."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "commands": Commands()})

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
        from importlib.metadata import version

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


def main() -> None:
    """Run the command that the person typed."""
    console.accept_all()
    app(prog_name="raygen")
