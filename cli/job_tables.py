"""Jobs, their history and what runs for them as Rich tables and JSON; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from cli.words import duration, iso_time, local_time, state
from raygen import machine
from raygen.capacity import Devices, OnDemand
from raygen.queue.job import ENDED, RETRIED, Attempt, Event, Job, limit_in_words
from raygen.queue.places import typed


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
            f"{local_time(job.submitted_at):%Y-%m-%d %H:%M}",
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
        "submitted_at": iso_time(job.submitted_at),
        "ended_at": iso_time(job.ended_at),
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
            {"at": iso_time(event.at), "from": event.from_state, "to": event.to_state, "reason": event.reason}
            for event in events
        ],
        "attempts": [
            {
                "number": attempt.number,
                "submission_id": attempt.submission_id,
                "started_at": iso_time(attempt.started_at),
                "ended_at": iso_time(attempt.ended_at),
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
        table.add_row(f"{local_time(event.at):%Y-%m-%d %H:%M:%S}", state(changed) if changed else "", event.reason)
    return table


def status_table(status: Mapping[str, Any]) -> Table:
    """What runs for the queue, a row for each thing."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    rows = {"cluster": status["cluster"], "Ray": status["address"] or "not running"}
    if status["unreachable_since"] is not None:
        rows["problem"] = f"unreachable since {local_time(status['unreachable_since']):%H:%M:%S}: {status['problem']}"
    elif status["address"] and status["cpus"] is not None:
        gpus = f"{status['gpus_in_use']:g} of {status['gpus']} GPUs"
        rows["in use"] = f"{gpus}, {status['cpus_in_use']} of {status['cpus']} CPU cores"
    for node in status["nodes"] if len(status["nodes"]) > 1 else ():
        runs = ", ".join(f"{number} of {name}" for name, number in node["jobs"].items()) or "nothing runs there"
        rows[f"node {_short(node)}"] = f"{_devices(node)}; {runs}"
    for node in status["lost_nodes"]:
        why = f": {node['problem']}" if node["problem"] else ""
        rows[f"lost {_short(node)}"] = f"{_devices(node)}, at {local_time(node['lost_at']):%H:%M:%S}{why}"
    if status["on_demand"] is not None:
        rows["on demand"] = str(OnDemand(**status["on_demand"]))
    alive = [f"process {each['pid']} on {each['host']}" for each in status["dispatchers"] if each["alive"]]
    ends = ", until no job is left" if alive and status["ends_when_idle"] else ""
    rows["dispatcher"] = ", ".join(alive) + ends or f"none; {_to_dispatch(status['name'])} starts one"
    if status["held_at"] is not None:
        since = f"{local_time(status['held_at']):%Y-%m-%d %H:%M}"
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
