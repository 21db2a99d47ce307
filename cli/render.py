"""Runs and their trials as Rich tables and lines; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cli import console
from cli.words import duration, local_time, state
from raygen.errors import RECURRING
from raygen.plan import Plan
from raygen.progress import in_words
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
            CACHED[each.part], each.name, in_words(each.size_bytes), f"{local_time(each.used_at):%Y-%m-%d %H:%M}"
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
        if spec["resources"]["gpus_per_trial"] == "auto":
            each += ", or as many on each GPU as are measured to be best"
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
