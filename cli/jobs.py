"""What `train` and `tune` share: prepare a job, say what will happen, queue it and follow it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cli import console, follow, render
from cli.options import Output
from raygen import preparation
from raygen.errors import SpecError
from raygen.preparation import Prepared
from raygen.queue.job import Job
from raygen.site import Site

EXTENSIBLE = ("search.trials", "training.epochs")
"""What may become more of in a search that has ended."""


@dataclass(frozen=True)
class View:
    """What the person wants to see of a job."""

    output: Output
    quiet: bool
    verbose: bool
    detach: bool

    def say(self, message: str) -> None:
        """Tell the person something that is not data."""
        if not self.quiet:
            console.talk().print(message, soft_wrap=True)

    @contextlib.contextmanager
    def waiting(self, message: str) -> Iterator[None]:
        """Show a spinner in a terminal while something takes a moment, and warnings once it has gone."""
        talk = console.talk()
        if self.quiet or not talk.is_terminal:
            yield
        else:
            with console.holding_warnings(), talk.status(message):
                yield


@dataclass(frozen=True)
class Submission:
    """Where a job goes, and what the queue is told of it."""

    site: Site
    name: str | None
    priority: int
    retries: int
    node_timeout_s: float | None


def run(prepare: Callable[[], Prepared], submission: Submission, *, dry_run: bool, view: View) -> None:
    """Prepare a job, print its plan, queue it and follow it to its end; or with `dry_run` only print plan and spec."""
    site = submission.site
    with view.waiting("reading the spec"):
        prepared = prepare()
    if dry_run:
        view.say(_plan(prepared, site.storage / (submission.name or "…")))
        console.show_json({"plan": prepared.plan.as_json(), "spec": prepared.spec.model_dump(mode="json")})
        return
    with view.waiting("reading the images"):
        preparation.check_data(prepared)
    with view.waiting("queueing the job"):
        job = site.submit(
            prepared,
            name=submission.name,
            priority=submission.priority,
            retries=submission.retries,
            node_timeout_s=submission.node_timeout_s,
        )
    view.say(_plan(prepared, Path(job.folder)))
    _follow(site, job, view)


def resume(
    name: str,
    kind: Literal["train", "tune"],
    model: str | None,
    settings: dict[str, Any],
    *,
    site: Site,
    view: View,
) -> None:
    """Queue a failed or cancelled job again and follow it; raises SpecError where more than the job was given."""
    given = [*([model] if model else []), *settings]
    if given:
        raise SpecError(f"--resume goes on with the run as it was planned; leave out {', '.join(given)}")
    job = site.store.find(name)
    if job.kind != kind:
        raise SpecError(f"{job.name} was made by `raygen {job.kind}`; type raygen {job.kind} --resume {name}")
    job = site.retry(job)
    view.say(f"going on with {job.name}\nresults in {job.folder}")
    _follow(site, job, view)


def extend(name: str, model: str | None, settings: dict[str, Any], *, site: Site, dry_run: bool, view: View) -> None:
    """Queue a finished search again, for more trials or epochs; raises SpecError where anything else was given."""
    other = [*([model] if model else []), *(path for path in settings if path not in EXTENSIBLE)]
    if other:
        raise SpecError(f"--extend takes --trials and --epochs; leave out {', '.join(other)}")
    job = site.store.find(name)
    trials, epochs = (settings.get(path) for path in EXTENSIBLE)
    if dry_run:
        console.show_json({"spec": preparation.extended(job, trials=trials, epochs=epochs).model_dump(mode="json")})
        return
    job = site.extend(job, trials=trials, epochs=epochs)
    view.say(f"going on with {job.name}\nresults in {job.folder}")
    _follow(site, job, view)


def named(model: str | None) -> str:
    """The model that was typed; raises SpecError where none was."""
    if model is None:
        raise SpecError("name a model, such as vae (`raygen models` lists them), or --resume RUN")
    return model


def _follow(site: Site, job: Job, view: View) -> None:
    if not view.detach:
        follow.follow(site, job, output=view.output, quiet=view.quiet, verbose=view.verbose)
    elif view.output == "json":
        console.show_json(render.job_json(job, ""))
    else:
        console.show(job.name)
        view.say(f"queued; `raygen watch {job.name}` follows it, `raygen cancel {job.name}` ends it")


def _plan(prepared: Prepared, place: Path) -> str:
    spec = prepared.spec.model_dump(mode="json")
    return render.plan_lines(prepared.kind, spec, prepared.plan, prepared.direction, place)
