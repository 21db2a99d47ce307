"""`raygen evaluate` and `raygen compare`: what trained models are judged to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import cards, console, judging_options, options
from raygen import files
from raygen.api import judging
from raygen.api.loading import find_model, find_run, with_prior
from raygen.errors import SpecError
from raygen.evaluation_card import CARD
from raygen.metrics import short
from raygen.protocol import IS_SAMPLES, Protocol

if TYPE_CHECKING:
    from raygen.comparison import Comparison
    from raygen.training_curves import Against

RANKING_METRICS = ",".join(judging.RANKING_METRICS)

ImportanceSamples = Annotated[
    int | None,
    typer.Option(help="Importance samples for each image, of val_is_log_likelihood.", show_default=str(IS_SAMPLES)),
]
NormalClass = Annotated[
    int | None,
    typer.Option(
        min=0, help="The class that is no anomaly, of val_anomaly_auroc.", show_default="that of the training"
    ),
]
ComparisonPicture = Annotated[Path | None, typer.Option(metavar="PNG", help="Write a row of samples of each.")]
CurvesPicture = Annotated[
    Path | None,
    typer.Option(
        metavar="PNG",
        help="Instead draw what epochs showed, a band over the seeds of each configuration, and say how fast and "
        "how stable they were.",
    ),
]
AgainstOption = Annotated[
    Literal["epoch", "time", "images"] | None,
    typer.Option(help="What curves are drawn against.", show_default="epoch"),
]


def evaluate(
    model: options.ModelPlace,
    metrics: judging_options.Metrics = None,
    network: judging_options.Network = "random",
    split: judging_options.JudgedSplit = "validation",
    images: judging_options.JudgedImages = None,
    samples: judging_options.JudgedSamples = None,
    reference: judging_options.Reference = None,
    seed: judging_options.JudgingSeed = 0,
    is_samples: ImportanceSamples = None,
    normal_class: NormalClass = None,
    fid_weights: judging_options.FidWeights = None,
    prior: judging_options.Prior = None,
    components: judging_options.Components = None,
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
    output: options.OutputOption = "table",
) -> None:
    """Judge a model on images that its training has not seen by all metrics that suit it, and write a card beside it.

    `--split test --samples 50000 --reference train` follows the protocol of published Fréchet distances.
    """
    source = find_model(model, storage=storage)
    source.check_writable(CARD)
    card = judging.evaluate(
        with_prior(source.load(device), prior, components),
        Protocol(
            split=split,
            images=images,
            samples=samples,
            reference=reference,
            network=network,
            seed=seed,
            is_samples=is_samples,
            normal_class=normal_class,
            fid_weights=fid_weights,
        ),
        metrics=_names(metrics) or None,
        data=data,
        data_root=data_root,
        image_size=image_size,
    )
    where = source.write(CARD, card.with_earlier(source.read(CARD)).as_bytes())
    if output == "json":
        console.show_json(card.model_dump(mode="json"))
        return
    if card.left_out:
        console.say(f"left out: {'; '.join(f'{name} ({reason})' for name, reason in card.left_out.items())}")
    console.show(cards.card_table(card))
    console.say(f"{cards.card_subject(card)}; card in {where}")


def compare(
    models: options.ModelPlaces,
    metrics: judging_options.RankingMetrics = RANKING_METRICS,
    network: judging_options.Network = "random",
    split: judging_options.JudgedSplit = "validation",
    images: judging_options.JudgedImages = None,
    samples: judging_options.JudgedSamples = None,
    reference: judging_options.Reference = None,
    seed: judging_options.JudgingSeed = 0,
    fid_weights: judging_options.FidWeights = None,
    prior: judging_options.Prior = None,
    components: judging_options.Components = None,
    picture: ComparisonPicture = None,
    curves: CurvesPicture = None,
    against: AgainstOption = None,
    device: judging_options.Device = "auto",
    storage: options.Storage = None,
    output: options.OutputOption = "table",
) -> None:
    """Rank the best models of runs on the same metrics, images, samples and seed; the first metric decides.

    With --prior gmm a model that has no prior of its own is sampled from a mixture.
    """
    names = _names(metrics)
    judging.check_comparison(models, names)
    if picture is not None:
        files.check_writable(picture)
    if curves is not None:
        _compare_curves(models, names, against or "epoch", curves, storage, output)
        return
    if against is not None:
        raise SpecError("--against is what curves are drawn against; give --curves FILE.png too")
    protocol = Protocol(
        split=split,
        images=images,
        samples=samples,
        reference=reference,
        network=network,
        seed=seed,
        fid_weights=fid_weights,
    )
    comparison = judging.compare(
        models, protocol, metrics=names, prior=prior, components=components, device=device, storage=storage
    )
    _show(comparison, output)
    if picture is not None:
        from raygen import pictures
        from raygen.comparison import draw

        pictures.save(draw(comparison.ranked, seed), picture)
        console.say(f"a row of samples of each in {picture}")


def _compare_curves(
    models: list[str],
    names: list[str],
    against: Against,
    path: Path,
    storage: str | None,
    output: options.Output,
) -> None:
    files.check_writable(path)
    from raygen import curves_plot, training_curves

    found = training_curves.groups((find_run(name, storage).look() for name in dict.fromkeys(models)), against)
    known = training_curves.known_metrics(found, judging.full_names(names))
    level = training_curves.level(found, known[0])
    rows = training_curves.stability(found, known[0], against, level)
    curves_plot.save(found, known, against, path)
    if output == "json":
        told = [row.as_json() for row in rows]
        console.show_json({"metric": known[0], "against": against, "level": level, "configurations": told})
        return
    console.show(cards.stability_table(rows, known[0], against, level))
    console.say(f"what epochs showed, not judged anew; curves of {', '.join(map(short, known))} in {path}")


def _show(comparison: Comparison, output: options.Output) -> None:
    if output == "json":
        console.show_json(comparison.as_json())
        return
    console.show(cards.comparison_table(comparison.ranked, comparison.metrics))
    console.say(cards.circumstances(comparison.ranked))
    for place, each in enumerate(comparison.differences):
        # Between the first two it decides what to take; of the others only what the order does not show is said.
        if place == 0 or each.is_within:
            console.say(cards.difference(each))


def _names(metrics: str | None) -> list[str]:
    """The metrics of `--metrics frechet,val_ssim`; none if it was not given."""
    names = (metrics or "").replace(" ", "").split(",")
    return [name for name in names if name]
