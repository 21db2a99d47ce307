"""What `train` and `tune` share: prepare a job, say what will happen, start it and follow it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cli import console, follow, render
from cli.options import Output
from raygen import api
from raygen.errors import SpecError
from raygen.runs import Run, default_storage


@dataclass(frozen=True)
class View:
    """What the person wants to see of a job."""

    output: Output
    quiet: bool
    verbose: bool

    def say(self, message: str) -> None:
        """Tell the person something that is not data."""
        if not self.quiet:
            console.talk().print(message, soft_wrap=True)

    @contextlib.contextmanager
    def waiting(self, message: str) -> Iterator[None]:
        """Show a spinner in a terminal while something takes a moment."""
        talk = console.talk()
        if self.quiet or not talk.is_terminal:
            yield
        else:
            with talk.status(message):
                yield


def run(prepare: Callable[[], api.Job], *, storage: Path | None, dry_run: bool, view: View) -> None:
    """Prepare a job, print its plan, and run it to its end; or with `dry_run` only print plan and spec."""
    with view.waiting("reading the spec"):
        job = prepare()
    if dry_run:
        view.say(_plan(job, (storage or default_storage()) / "…"))
        console.show_json({"plan": job.plan.as_json(), "spec": job.spec.model_dump(mode="json")})
        return
    with view.waiting("reading the images"):
        api.check_data(job)
    new = api.create_run(job, storage=storage)
    view.say(_plan(job, new.folder))
    _start_and_follow(new, job.address, view)


def resume(
    name: str,
    kind: Literal["train", "tune"],
    model: str | None,
    settings: dict[str, Any],
    *,
    storage: Path | None,
    address: str | None,
    view: View,
) -> None:
    """Go on with a run's unfinished trials; raises SpecError where more than the run was given."""
    given = [*([model] if model else []), *settings]
    if given:
        raise SpecError(f"--resume goes on with the run as it was planned; leave out {', '.join(given)}")
    earlier = Run.open(name, storage or default_storage())
    if earlier.kind != kind:
        raise SpecError(
            f"{earlier.name} was made by `raygen {earlier.kind}`; type raygen {earlier.kind} --resume {name}"
        )
    api.check_resumable(earlier)
    view.say(f"going on with {earlier.name}\nresults in {earlier.folder}")
    _start_and_follow(earlier, address, view)


def named(model: str | None) -> str:
    """The model that was typed; raises SpecError where none was."""
    if model is None:
        raise SpecError("name a model, such as vae (`raygen models` lists them), or --resume RUN")
    return model


def _start_and_follow(new: Run, address: str | None, view: View) -> None:
    driver = api.start(new, address=address, verbose=view.verbose)
    follow.follow(driver, output=view.output, quiet=view.quiet, verbose=view.verbose)


def _plan(job: api.Job, place: Path) -> str:
    return render.plan_lines(job.kind, job.spec.model_dump(mode="json"), job.plan, job.direction, place)
