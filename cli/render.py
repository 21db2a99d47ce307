"""Records as Rich tables; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cli import console
from raygen import machine
from raygen.capacity import Devices, OnDemand
from raygen.data.progress import in_words
from raygen.errors import RECURRING
from raygen.plan import Plan
from raygen.queue.job import ENDED, RETRIED, Attempt, Event, Job, limit_in_words
from raygen.queue.places import typed
from raygen.report import Report, TrialRecord
from raygen.search_insight import ROUGH_BELOW, SearchInsight
from raygen.space import Choice
from raygen.spec.settings import field_of

if TYPE_CHECKING:
    from rich.text import Text

    from raygen.data.cached import Cached

CACHED = {"decoded": "images", "classifiers": "network", "datasets": "data set"}
"""What people call a part of the cache."""

ALWAYS_SHOWN = ("optimizer.lr", "training.batch_size", "model.latent_dim")
STATE_STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "dim",
    "waiting": "dim",
    "queued": "dim",
    "starting": "cyan",
    "recovering": "yellow",
    "succeeded": "green",
    "cancelled": "yellow",
}


def trial_table(run: Report, records: Sequence[TrialRecord]) -> Table:
    """A row for each trial, in the order given."""
    shown = [*ALWAYS_SHOWN, *(key for key in _varied(records) if key not in ALWAYS_SHOWN)]
    arrow = "↑" if run.direction == "max" else "↓"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    for key in shown:
        table.add_column(_heading(key), justify="right")
    table.add_column("epochs", justify="right")
    table.add_column(f"{run.objective} {arrow}", justify="right", min_width=7)
    has_replicates = any(record.mean is not None for record in records)
    if has_replicates:
        table.add_column("fresh seeds", justify="right")
    table.add_column("time", justify="right")
    table.add_column("state", overflow="fold", min_width=len("interrupted"))
    for record in records:
        values = [_number(record.parameters.get(key, field_of(run.spec_json, key))) for key in shown]
        table.add_row(
            _trial(record),
            *values,
            _epochs(record),
            _objective(record.objective),
            *([mean_and_spread(record.mean, record.spread)] if has_replicates else []),
            duration(record.train_s),
            state(record.state, why_ended(record)),
        )
    return table


def insight_table(insight: SearchInsight) -> Table:
    """A row for each parameter of a search, the most important first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameter", overflow="fold", min_width=12)
    table.add_column("importance", justify="right")
    table.add_column("searched", overflow="fold")
    table.add_column(f"in the best {insight.best_trials}", overflow="fold")
    for each in insight.parameters:
        ends = each.distribution.choice if isinstance(each.distribution, Choice) else each.distribution.bounds
        mark = ", " if each.is_choice else " … "
        searched, best = (mark.join(_choice(value) for value in values) for values in (ends, each.best))
        table.add_row(each.name, f"{100 * each.importance:.0f} %", searched, best)
    return table


def insight_basis(insight: SearchInsight, objective: str) -> str:
    """What importances are of and judged by, in one line."""
    left_out = f", {insight.left_out} without a value left out" if insight.left_out else ""
    rough = "; from so few they are rough" if insight.trials < ROUGH_BELOW else ""
    return f"importance: part of the variance of {insight.trials} trials' ranks by {objective}{left_out}{rough}"


def why_ended(record: TrialRecord) -> str:
    """Why a trial failed, in full, or was stopped, by name; nothing where it ended as it should."""
    if record.state == "stopped":
        return record.reason.partition(":")[0]
    return record.reason if record.state == "failed" else ""


def job_table(jobs: Sequence[Job], reasons: Mapping[int, str], best: Mapping[int, str]) -> Table:
    """A row for each job: its state, why it waits or how it ended, and the best value so far; and whose it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    of_several = len({job.user for job in jobs} | {machine.user()}) > 1
    table.add_column("job", overflow="fold", min_width=12)
    if of_several:
        table.add_column("user", overflow="fold")
    table.add_column("state", overflow="fold", min_width=8)
    table.add_column("priority", justify="right")
    table.add_column("devices", justify="right")
    table.add_column("best", justify="right")
    table.add_column("queued")
    for job in jobs:
        table.add_row(
            job.name,
            *([job.user] if of_several else []),
            state(job.state, reasons.get(job.id, job.reason if job.state in RETRIED else "")),
            str(job.priority),
            f"{job.gpus:g} GPU" if job.gpus else f"{job.cpus} CPU",
            best[job.id],
            f"{_local_time(job.submitted_at):%Y-%m-%d %H:%M}",
        )
    return table


def job_json(job: Job, reason: str) -> dict[str, Any]:
    """A job as plain JSON, with the reason for its state."""
    return {
        "job": job.name,
        "state": str(job.state),
        "reason": reason,
        "priority": job.priority,
        "kind": job.kind,
        "model": job.model,
        "data": job.data,
        "user": job.user,
        "cluster": job.cluster,
        "gpus": job.gpus,
        "cpus": job.cpus,
        "attempt": job.attempt,
        "retries": job.retries,
        "held": job.held_at is not None,
        "time_limit_s": job.time_limit_s,
        "submitted_at": _iso(job.submitted_at),
        "ended_at": _iso(job.ended_at),
        "storage": job.storage,
    }


def time_limit(job: Job, left_s: float) -> str:
    """How long a job may run, and what is left of that for one that has begun and not ended."""
    limit_s = job.time_limit_s or 0.0
    left = f", {duration(left_s)} left" if job.state not in ENDED and left_s < limit_s else ""
    return f"time limit: {limit_in_words(limit_s)}{left}"


def history_json(events: Iterable[Event], attempts: Iterable[Attempt]) -> dict[str, Any]:
    """What happened to a job, as plain JSON."""
    return {
        "events": [
            {"at": _iso(event.at), "from": event.from_state, "to": event.to_state, "reason": event.reason}
            for event in events
        ],
        "attempts": [
            {
                "number": attempt.number,
                "submission_id": attempt.submission_id,
                "started_at": _iso(attempt.started_at),
                "ended_at": _iso(attempt.ended_at),
                "outcome": attempt.outcome,
            }
            for attempt in attempts
        ],
    }


def history_table(events: Iterable[Event]) -> Table:
    """A row for each thing that happened to a job, the oldest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("time", "state", "reason"):
        table.add_column(heading, overflow="fold")
    for event in events:
        changed = event.to_state if event.from_state != event.to_state else ""
        table.add_row(f"{_local_time(event.at):%Y-%m-%d %H:%M:%S}", state(changed) if changed else "", event.reason)
    return table


def status_table(status: Mapping[str, Any]) -> Table:
    """What runs for the queue, a row for each thing."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    rows = {"cluster": status["cluster"], "Ray": status["address"] or "not running"}
    if status["unreachable_since"] is not None:
        rows["problem"] = f"unreachable since {_local_time(status['unreachable_since']):%H:%M:%S}: {status['problem']}"
    elif status["address"] and status["cpus"] is not None:
        gpus = f"{status['gpus_in_use']:g} of {status['gpus']} GPUs"
        rows["in use"] = f"{gpus}, {status['cpus_in_use']} of {status['cpus']} CPU cores"
    for node in status["nodes"] if len(status["nodes"]) > 1 else ():
        runs = ", ".join(f"{number} of {name}" for name, number in node["jobs"].items()) or "nothing runs there"
        rows[f"node {_short(node)}"] = f"{_devices(node)}; {runs}"
    for node in status["lost_nodes"]:
        why = f": {node['problem']}" if node["problem"] else ""
        rows[f"lost {_short(node)}"] = f"{_devices(node)}, at {_local_time(node['lost_at']):%H:%M:%S}{why}"
    if status["on_demand"] is not None:
        rows["on demand"] = str(OnDemand(**status["on_demand"]))
    alive = [f"process {each['pid']} on {each['host']}" for each in status["dispatchers"] if each["alive"]]
    ends = ", until no job is left" if alive and status["ends_when_idle"] else ""
    rows["dispatcher"] = ", ".join(alive) + ends or f"none; {_to_dispatch(status['name'])} starts one"
    if status["held_at"] is not None:
        since = f"{_local_time(status['held_at']):%Y-%m-%d %H:%M}"
        again = typed("raygen release --all", status["name"])
        rows["held since"] = f"{since} by {status['held_by']}: nothing starts until {again}"
    rows["jobs"] = ", ".join(f"{number} {name}" for name, number in status["jobs"].items()) or "none"
    rows["queue"] = status["queue"]
    rows["storage"] = status["storage"]
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _to_dispatch(cluster: str) -> str:
    """What starts a dispatcher for a cluster: `raygen up` is for this machine's own alone."""
    return typed("raygen dispatch" if "://" in cluster else "raygen up", cluster)


def _short(node: Mapping[str, Any]) -> str:
    """A node's name, and enough of its id to tell it from others of that name."""
    return f"{node['name']} ({node['id'][:6]})"


def _devices(node: Mapping[str, Any]) -> str:
    return str(Devices(node["gpus"], node["cpus"]))


def trial_end(run: Report, record: TrialRecord) -> str:
    """How a trial ended, in one line."""
    value = "" if record.objective is None else f", {run.objective} {record.objective:.5g}"
    reason = why_ended(record)
    shown = f" ({reason})" if reason else ""
    return f"trial {record.number} {record.state}{shown} after {duration(record.train_s)}{value}"


def cache_table(found: Sequence[Cached]) -> Table:
    """A row for each thing in the cache."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    table.add_column("name", overflow="fold", min_width=12)
    table.add_column("size", justify="right")
    table.add_column("last used")
    for each in found:
        table.add_row(
            CACHED[each.part], each.name, in_words(each.size_bytes), f"{_local_time(each.used_at):%Y-%m-%d %H:%M}"
        )
    return table


def name_table(names: dict[str, str]) -> Table:
    """Names with one line about each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, line in names.items():
        table.add_row(name, line)
    return table


def plan_lines(run_kind: str, spec: dict[str, Any], plan: Plan, direction: str, place: str) -> tuple[str, str]:
    """What will run where, in two lines."""
    subject = f"{spec['model']['name']} on {Path(spec['data']['source']).name}"
    if spec["data"]["normal_class"] is not None:
        subject += f", class {spec['data']['normal_class']} only"
    if spec["warm_start"] is not None:
        subject += f", from the decoder in {spec['warm_start']['source']}"
    if run_kind == "tune":
        trials = spec["search"]["trials"]
        what = f"{trials} trial{'s' if trials > 1 else ''} of {subject}, {plan.concurrent} at a time"
        each = f"{plan.devices_per_trial} each"
    else:
        what, each = f"training {subject}", plan.devices_per_trial
    best = "highest" if direction == "max" else "lowest"
    epochs = spec["training"]["epochs"]
    return (
        f"{what}, {each}; {epochs} epoch{'s' if epochs > 1 else ''}, best is the {best} "
        f"{spec['evaluation']['objective']}",
        f"results in {place}",
    )


def outcome(run: Report) -> Text:
    """The best configuration, where its checkpoint is, and what to type next."""
    lines: list[tuple[str, str]] = []
    best = next((record for record in run.records if record.objective is not None), None)
    if best is not None:
        keys = dict.fromkeys((*ALWAYS_SHOWN, *best.parameters))
        values = (f"{_heading(key)} {_number(best.parameters.get(key, field_of(run.spec_json, key)))}" for key in keys)
        found = f"trial {best.number}, {run.objective} {_objective(best.objective)} after epoch {best.best_epoch}"
        if best.validation_images:
            found += f" on {best.validation_images:,} validation images"
        lines += [("best", f"{found}: {', '.join(values)}")]
    if run.best:
        lines += [("test", tested(run))]
        lines += [("checkpoint", f"{run.name}/best/1")]
        if run.can_sample:
            lines += [("next", f"raygen sample {run.name} --n 64 -o grid.png")]
        lines += [("next", f"raygen show {run.name}")]
    state, cause = run.status.state, run.status.cause
    if state == "interrupted" or (state == "failed" and cause not in RECURRING):
        lines += [("go on", f"raygen retry {run.name}")]
    width = max((len(label) for label, _ in lines), default=0)
    return console.lines(*(console.text((label.rjust(width), "bold"), "  ", line) for label, line in lines))


def tested(run: Report) -> str:
    """The best model's value on the test images, beside that of the defaults, or why there is none."""
    found = run.tested
    if found is None:
        return f"no value: {run.why_untested}"
    best, defaults = found["best"], found["defaults"]
    over = mean_and_spread(best["mean"], best["spread"])
    seeds = f" ({over} over {best['seeds']} fresh seed{'s' if best['seeds'] > 1 else ''})" if over else ""
    which = f"trial {best['trial']}, its best seed: " if best["trial"] != best["configuration"] else ""
    line = f"{which}{found['metric']} {_objective(best['value'])}{seeds} on {found['images']:,} test images"
    if defaults is None:
        return line
    if defaults["trial"] == best["configuration"]:
        return f"{line}; these are the defaults"
    after = f", after epoch {defaults['epoch']}" if defaults["epoch"] else ""
    return f"{line}; the defaults (trial {defaults['trial']}{after}): {_objective(defaults['value'])}"


def state(name: str, reason: str = "") -> Text:
    """A state in its colour, with its reason."""
    return console.text((f"{name}: {reason}" if reason else name, STATE_STYLES[name]))


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _local_time(at: float) -> datetime:
    return datetime.fromtimestamp(at).astimezone()


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _epochs(record: TrialRecord) -> str:
    """Finished epochs, with the part of the next one while the trial runs."""
    done = record.fraction * record.epochs
    return f"{done:.1f}/{record.epochs}" if record.state == "running" else f"{record.epoch}/{record.epochs}"


def _varied(records: Iterable[TrialRecord]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record.parameters))


def _heading(path: str) -> str:
    return path.rpartition(".")[2].replace("_", " ")


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _choice(value: Any) -> str:
    """A parameter's value; layer sizes are in brackets."""
    return str(list(value)) if isinstance(value, (list, tuple)) else _number(value)


def _trial(record: TrialRecord) -> str:
    """Its number, and after it that of the trial whose configuration it runs again."""
    return str(record.number) if record.replicate_of is None else f"{record.number} ({record.replicate_of})"


def mean_and_spread(mean: float | None, spread: float | None) -> str:
    """Mean ± spread of several seeds; nothing if there are none."""
    if mean is None:
        return ""
    return f"{mean:.5g}" + ("" if spread is None else f" ± {spread:.2g}")


def _objective(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"
