"""What `train` and `tune` share: prepare a job, say what will happen, queue it and follow it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cli import console, follow, job_tables, progress, render
from cli.options import Output
from raygen import preparation, selection
from raygen.errors import DataError, SpecError
from raygen.preparation import Prepared
from raygen.queue.job import Job, limit_in_words
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

    def say(self, *lines: str) -> None:
        """Tell the person something that is not data."""
        if not self.quiet:
            console.say(*lines)

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
    time_limit_s: float | None


def run(prepare: Callable[[], Prepared], submission: Submission, *, dry_run: bool, view: View) -> None:
    """Prepare a job, print its plan, queue it and follow it to its end; or with `dry_run` only print plan and spec.

    Whether the images find room on GPUs is part of a plan, so a dry run of a job on GPUs reads them too.
    """
    site = submission.site
    with view.waiting("reading the spec"):
        prepared = prepare()
    images_bytes = None
    if prepared.plan.gpus or not dry_run:
        unread = [DataError] if dry_run else []  # that is told when the job is queued
        with view.waiting("reading the images"), contextlib.suppress(*unread):
            images_bytes = preparation.check_data(prepared)
    if dry_run:
        view.say(*_plan(prepared, f"{site.address}/{submission.name or '…'}", submission, images_bytes))
        plan, spec = prepared.plan.as_json(), prepared.spec.model_dump(mode="json")
        console.show_json({"plan": plan, "time_limit_s": submission.time_limit_s, "spec": spec})
        return
    with progress.shown("sending images", quiet=view.quiet) as on_progress:
        job = site.submit(
            prepared,
            name=submission.name,
            priority=submission.priority,
            retries=submission.retries,
            node_timeout_s=submission.node_timeout_s,
            time_limit_s=submission.time_limit_s,
            on_progress=on_progress,
        )
    view.say(*_plan(prepared, site.run_of(job).address, submission, images_bytes))
    _follow(site, job, view)


def resume(
    name: str,
    kind: Literal["train", "tune"],
    model: str | None,
    settings: dict[str, Any],
    *,
    site: Site,
    force: bool,
    dry_run: bool,
    view: View,
) -> None:
    """Queue a failed or cancelled job again and follow it; raises SpecError if more than the job was given."""
    given = [*([model] if model else []), *settings]
    if given:
        raise SpecError(f"--resume goes on with the run as it was planned; leave out {', '.join(given)}")
    [job] = selection.named(site, [name], "retry", force=force)
    if job.kind != kind:
        raise SpecError(f"{job.name} was made by `raygen {job.kind}`; type raygen {job.kind} --resume {name}")
    if dry_run:
        console.show_json({"spec": site.run_of(job).look().spec().model_dump(mode="json")})
        return
    job = site.retry(job)
    view.say(f"going on with {job.name}", f"results in {site.run_of(job).address}")
    _follow(site, job, view)


def extend(
    name: str,
    model: str | None,
    settings: dict[str, Any],
    *,
    site: Site,
    force: bool,
    dry_run: bool,
    view: View,
) -> None:
    """Queue a finished search again, for more trials or epochs; raises SpecError where anything else was given."""
    other = [*([model] if model else []), *(path for path in settings if path not in EXTENSIBLE)]
    if other:
        raise SpecError(f"--extend takes --trials and --epochs; leave out {', '.join(other)}")
    [job] = selection.named(site, [name], "extend", force=force)
    trials, epochs = (settings.get(path) for path in EXTENSIBLE)
    if dry_run:
        console.show_json({"spec": site.extended_spec(job, trials=trials, epochs=epochs).model_dump(mode="json")})
        return
    job = site.extend(job, trials=trials, epochs=epochs)
    view.say(f"going on with {job.name}", f"results in {site.run_of(job).address}")
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
        console.show_json(job_tables.job_json(job, ""))
    else:
        console.show(job.name)
        view.say(f"queued; `raygen watch {job.name}` follows it, `raygen cancel {job.name}` ends it")


def _plan(prepared: Prepared, place: str, submission: Submission, images_bytes: int | None) -> list[str]:
    spec = prepared.spec.model_dump(mode="json")
    lines = [*render.plan_lines(prepared.kind, spec, prepared.plan, prepared.direction, place)]
    if prepared.plan.gpus and images_bytes is not None:
        memory_bytes = _memory_bytes(submission.site)
        lines.append(preparation.where_images_lie(prepared, images_bytes, memory_bytes=memory_bytes))
    if submission.time_limit_s is not None:
        lines.append(f"ends with a checkpoint after {limit_in_words(submission.time_limit_s)}")
    return lines


def _memory_bytes(site: Site) -> int | None:
    """What the smallest GPU of this machine has, if jobs run on it; None if they go elsewhere."""
    from raygen.cluster import gpus

    return None if site.service.address is not None else gpus.smallest_memory_bytes(gpus.here())
