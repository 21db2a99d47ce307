"""Records as Rich tables; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from raygen.plan import Plan
from raygen.runs import Run, Status, TrialRecord

ALWAYS_SHOWN = ("optimizer.lr", "training.batch_size", "model.latent_dim")
STATE_STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "dim",
    "waiting": "dim",
}


def trial_table(run: Run, records: Sequence[TrialRecord]) -> Table:
    """A row for each trial, in the order given."""
    shown = [*ALWAYS_SHOWN, *(key for key in _varied(records) if key not in ALWAYS_SHOWN)]
    arrow = "↑" if run.direction == "max" else "↓"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    for key in shown:
        table.add_column(_heading(key), justify="right")
    table.add_column("epochs", justify="right")
    table.add_column(f"{run.objective} {arrow}", justify="right", min_width=7)
    table.add_column("time", justify="right")
    table.add_column("state", overflow="fold", min_width=len("interrupted"))
    for record in records:
        values = [_number(record.parameters.get(key, field(run.spec_json, key))) for key in shown]
        table.add_row(
            str(record.number),
            *values,
            _epochs(record),
            _objective(record.objective),
            duration(record.train_s),
            state(record.state, record.reason if record.state == "failed" else ""),
        )
    return table


def run_table(summaries: Iterable[dict[str, Any]]) -> Table:
    """A row for each run's summary, in the order given."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "kind", "trials", "objective", "best", "state", "made"):
        table.add_column(heading, justify="right" if heading in ("trials", "best") else "left", overflow="fold")
    for summary in summaries:
        trials = summary["trials"]
        table.add_row(
            summary["run"],
            summary["kind"],
            str(len(trials)),
            summary["objective"],
            _objective(trials[0]["objective"] if trials else None),
            state(summary["state"]),
            f"{datetime.fromisoformat(summary['created_at']).astimezone():%Y-%m-%d %H:%M}",
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


def plan_lines(run_kind: str, spec: dict[str, Any], plan: Plan, direction: str, place: Path) -> str:
    """What will run where, in two lines."""
    subject = f"{spec['model']['name']} on {Path(spec['data']['source']).name}"
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
        f"{spec['evaluation']['objective']}\nresults in {place}"
    )


def outcome(run: Run, records: Sequence[TrialRecord], status: Status) -> Text:
    """The best configuration, where its checkpoint is, and what to type next."""
    lines: list[tuple[str, str]] = []
    best = next((record for record in records if record.objective is not None), None)
    if best is not None:
        keys = dict.fromkeys((*ALWAYS_SHOWN, *best.parameters))
        values = (f"{_heading(key)} {_number(best.parameters.get(key, field(run.spec_json, key)))}" for key in keys)
        found = f"trial {best.number}, {run.objective} {_objective(best.objective)} after epoch {best.best_epoch}"
        lines += [("best", f"{found}: {', '.join(values)}")]
    places = run.best_places()
    if places:
        lines += [("checkpoint", str(places[0]))]
        if run.can_sample():
            lines += [("next", f"raygen sample {run.name} --n 64 -o grid.png")]
        lines += [("next", f"raygen show {run.name}")]
    if status.state == "interrupted":
        lines += [("go on", f"raygen {run.kind} --resume {run.name}")]
    width = max((len(label) for label, _ in lines), default=0)
    return Text("\n").join(Text.assemble((label.rjust(width), "bold"), "  ", line) for label, line in lines)


def field(spec: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of a spec."""
    value: Any = spec
    for part in path.split("."):
        value = value[part]
    return value


def state(name: str, reason: str = "") -> Text:
    """A state in its colour, with its reason."""
    return Text(f"{name}: {reason}" if reason else name, style=STATE_STYLES[name])


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


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


def _objective(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"
