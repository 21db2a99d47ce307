"""Evaluation cards and comparisons as Rich tables and lines; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from cli import console
from cli.words import duration
from raygen import metrics

if TYPE_CHECKING:
    from raygen.comparison import Compared
    from raygen.evaluation_card import EvaluationCard, Value
    from raygen.spread import Difference
    from raygen.training_curves import Against, Stability


def card_table(card: EvaluationCard) -> Table:
    """A row for each value of an evaluation card, with what to compare it with.

    That is `real`, what other real images reach in the place of samples, or a baseline: PCA of the model's size.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    beside = {name: _compare_with(value) for name, value in card.values.items()}
    is_beside, is_sampled = any(beside.values()), any(value.samples for value in card.values.values())
    columns = (("compare with", is_beside), ("samples", is_sampled), ("images", True))
    for heading, is_shown in columns:
        if is_shown:
            table.add_column(heading, justify="right", no_wrap=True)
    for name, value in card.values.items():
        arrow = "↑" if value.direction == "max" else "↓"
        cells = (beside[name] or "–", str(value.samples or "–"), str(value.images))
        shown = [cell for cell, (_, is_shown) in zip(cells, columns, strict=True) if is_shown]
        table.add_row(metrics.short(name), _value(value.value, digits=5), arrow, *shown)
    return table


def _compare_with(value: Value) -> str:
    """What a value is to be compared with, and its name; empty if there is nothing."""
    if value.baseline is not None:
        return f"{value.baseline.name} {_value(value.baseline.value)}"
    return "" if value.samples is None else f"real {_value(value.real_against_real)}"


def card_subject(card: EvaluationCard) -> str:
    """What an evaluation card is about, in one line."""
    values = list(card.values.values())
    trained = "" if card.train_s is None else f", trained for {duration(card.train_s)}"
    prior = next((f", prior: {value.prior}" for value in values if value.prior), "")
    seen = "" if card.corruption is None else f", each encoded after {card.corruption}"
    return (
        f"{card.model['name']} on {values[0].split} images of {card.data}{seen}{trained}{prior}"
        f"{_over_network(card.values)}{_against_training(card.values)}{_of_the_baseline(card.values)}"
        f"{_on_devices(card.values)}"
    )


def comparison_table(ranked: Sequence[Compared], names: Sequence[str]) -> Table:
    """A row for each model, the best first; a dash where a metric does not suit it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=8)
    for name in names:
        short = metrics.short(name)
        arrow = "↑" if metrics.find(metrics.PREFIX + short).direction == "max" else "↓"
        table.add_column(f"{short} {arrow}", justify="right", min_width=max(len(short), 6))
    for place, each in enumerate(ranked, start=1):
        fitted = f" + {each.trained.fitted.name}" if each.trained.fitted else ""
        trained = "" if each.card.train_s is None else f", {duration(each.card.train_s)}"
        run = console.text(each.name, (f" ({each.card.model['name']}{fitted}{trained})", "dim"))
        table.add_row(str(place), run, *(_value(each.value(name)) for name in names))
    return table


def stability_table(rows: Sequence[Stability], metric: str, against: Against, level: float) -> Table:
    """A row for each configuration: its best value over seeds, its cost to the level, how stable it was."""
    arrow = "↑" if metrics.find(metric).direction == "max" else "↓"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("configuration", overflow="fold", min_width=8)
    headings = ("seeds", f"best {metrics.short(metric)} {arrow}", f"{against} to {level:.4g}", "reached", "average")
    for heading in (*headings, "collapsed"):
        table.add_column(heading, justify="right")
    for row in rows:
        spread = "" if row.spread is None else f" ± {row.spread:.2g}"
        best, reached = f"{_value(row.best)}{spread}", f"{row.reached} of {row.seeds}"
        cost = "–" if row.cost is None else _cost(row.cost, against)
        table.add_row(row.name, str(row.seeds), best, cost, reached, _value(row.average), str(row.collapsed))
    return table


def _cost(cost: float, against: Against) -> str:
    return duration(cost) if against == "time" else f"{cost:,.0f}" if against == "images" else f"{cost:.1f}"


def circumstances(ranked: Sequence[Compared]) -> str:
    """What the models of a comparison have in common, in one line."""
    cards = [each.card for each in ranked]
    values = {name: value for card in cards for name, value in card.values.items()}
    counted = next((value for value in values.values() if value.reference in (None, value.split)), None)
    count = "" if counted is None else f"{counted.images} "
    split = next(iter(values.values())).split
    over_network = {name: value for name, value in values.items() if value.network}
    return (
        f"{count}{split} images of {cards[0].data}{_over_network(values)}{_reached(over_network)}"
        f"{_against_training(values)}{_reached(_without_network(values))}{_on_devices(values)}"
    )


def _reached(values: Mapping[str, Value]) -> str:
    """What real images reach by each metric."""
    real = [f"{metrics.short(name)} {_value(value.real_against_real)}" for name, value in values.items()]
    return f": {', '.join(real)}" if real else ""


def _without_network(values: Mapping[str, Value]) -> dict[str, Value]:
    """Those of metrics that compare samples with training images, over no feature network."""
    return {name: value for name, value in values.items() if value.samples and not value.network}


def _against_training(values: Mapping[str, Value]) -> str:
    """Which metrics compare samples with training images, and what stands in the place of samples."""
    found = _without_network(values)
    if not found:
        return ""
    names, split = ", ".join(map(metrics.short, found)), next(iter(found.values())).split
    return f"; {names}: against training images, real: {split} images in the place of samples"


def _on_devices(values: Mapping[str, Value]) -> str:
    """The GPUs that the models ran on, and how exactly; nothing is said of a CPU."""
    found = {value.device: f"{value.device} in {value.precision}" for value in values.values() if value.tf32 is False}
    found.pop("CPU", None)
    return f"; on {' and '.join(found.values())} without TF32" if found else ""


def _of_the_baseline(values: Mapping[str, Value]) -> str:
    baseline = next((value.baseline for value in values.values() if value.baseline), None)
    if baseline is None:
        return ""
    return f"; {baseline.name}: of as many dimensions as the latents, fitted on {baseline.fitted_on} training images"


def _over_network(values: Mapping[str, Value]) -> str:
    """How samples were compared over a feature network, if they were, and the seed."""
    compared = next((value for value in values.values() if value.network), None)
    if compared is None:
        return f", seed {next(iter(values.values())).seed}"
    right = f" ({_accuracy(compared)} of validation images right)" if _accuracy(compared) else ""
    part = "training" if compared.reference == "train" else compared.reference
    return (
        f", {compared.samples} samples against {compared.images} {part} images over the network "
        f"{_network(compared)}{right}, seed {compared.seed}; real: {compared.real_samples} other images in their place"
    )


def difference(found: Difference) -> str:
    """How far two models lie apart, and whether that is more than chance, in one line."""
    relation = "within" if found.is_within else "beyond"
    over = "images and seeds" if found.over_seeds else "images"
    return (
        f"{found.first} and {found.second} differ by {found.difference:.2g} in {found.name}, {relation} the spread "
        f"(±{found.spread:.2g} over {over})"
    )


def _network(value: Value) -> str:
    """A feature network, and that its weights are not the canonical ones where that is so."""
    canonical = (value.network_facts or {}).get("canonical", True)
    return f"{value.network}" if canonical else f"{value.network}, not canonical"


def _accuracy(value: Value) -> str:
    """A feature network's accuracy on validation images, if it has one."""
    accuracy = (value.network_facts or {}).get("held_out_accuracy")
    return "" if accuracy is None else f"{100 * accuracy:.1f} %"


def _value(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"
