"""`raygen evaluate` and `raygen compare`: what trained models are judged to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import cards, console, inspection, options
from raygen import api, files
from raygen.errors import SpecError
from raygen.metrics import PREFIX, reported, short

if TYPE_CHECKING:
    from raygen.comparison import Compared
    from raygen.data import Dataset
    from raygen.results import TrainedModel
    from raygen.spread import Difference
    from raygen.training_curves import Against

IS_SAMPLES = 5000
LIKELIHOOD = "val_is_log_likelihood"

ImportanceSamples = Annotated[
    int | None,
    typer.Option(help=f"Importance samples for each image, of {LIKELIHOOD}.", show_default=str(IS_SAMPLES)),
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
    metrics: options.Metrics = None,
    network: options.Network = "random",
    split: options.JudgedSplit = "validation",
    images: options.JudgedImages = None,
    samples: options.JudgedSamples = None,
    reference: options.Reference = None,
    seed: options.JudgingSeed = 0,
    is_samples: ImportanceSamples = None,
    normal_class: NormalClass = None,
    fid_weights: options.FidWeights = None,
    prior: options.Prior = None,
    components: options.Components = None,
    data: options.OtherData = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    storage: options.Storage = None,
    output: options.OutputOption = "table",
) -> None:
    """Judge a model on images that its training has not seen by all metrics that suit it, and write a card beside it.

    `--split test --samples 50000 --reference train` follows the protocol of published Fréchet distances.
    """
    place = api.find_checkpoint(model, storage=storage)
    folder = place if place.is_dir() else place.parent
    from raygen import evaluation

    files.check_writable(folder / evaluation.CARD)
    trained = inspection.with_prior(api.load(place), prior, components)
    dataset = api.load_images(trained, source=data, root=data_root, image_size=image_size, all_classes=True)
    card = evaluation.evaluate(
        trained,
        dataset,
        _names(metrics) or _suitable(trained, dataset, normal_class, is_samples),
        evaluation.Protocol(
            split=split,
            images=images,
            samples=samples,
            reference=reference,
            network=network,
            seed=seed,
            is_samples=IS_SAMPLES if is_samples is None else is_samples,
            normal_class=normal_class,
            fid_weights=fid_weights,
        ),
    )
    path = card.write(folder)
    if output == "json":
        console.show_json(card.model_dump(mode="json"))
        return
    console.show(cards.card_table(card))
    console.say(f"{cards.card_subject(card)}; card in {path}")


def compare(
    models: options.ModelPlaces,
    metrics: options.RankingMetrics = "frechet,precision,recall,coverage,ssim",
    network: options.Network = "random",
    split: options.JudgedSplit = "validation",
    images: options.JudgedImages = None,
    samples: options.JudgedSamples = None,
    reference: options.Reference = None,
    seed: options.JudgingSeed = 0,
    fid_weights: options.FidWeights = None,
    prior: options.Prior = None,
    components: options.Components = None,
    picture: ComparisonPicture = None,
    curves: CurvesPicture = None,
    against: AgainstOption = None,
    storage: options.Storage = None,
    output: options.OutputOption = "table",
) -> None:
    """Rank the best models of runs on the same metrics, images, samples and seed; the first metric decides.

    With --prior gmm a model that has no prior of its own is sampled from a mixture.
    """
    if len(set(models)) < 2:
        raise SpecError("compare takes two different runs or more; `raygen evaluate` judges one")
    if picture is not None:
        files.check_writable(picture)
    names = _names(metrics)
    if not names:
        raise SpecError("--metrics: name at least one, such as --metrics frechet")
    if curves is not None:
        _compare_curves(models, names, against or "epoch", curves, storage, output)
        return
    if against is not None:
        raise SpecError("--against is what curves are drawn against; give --curves FILE.png too")
    loaded = {name: api.load(name, storage=storage) for name in dict.fromkeys(models)}
    from raygen import comparison, evaluation, pictures

    comparison.check_data(loaded)
    candidates = {
        name: trained if trained.prior else inspection.with_prior(trained, prior, components)
        for name, trained in loaded.items()
    }
    dataset = api.load_images(next(iter(loaded.values())), all_classes=True)
    protocol = evaluation.Protocol(
        split=split,
        images=images,
        samples=samples,
        reference=reference,
        network=network,
        seed=seed,
        fid_weights=fid_weights,
    )
    ranked = comparison.compare(candidates, dataset, names, protocol)
    reported_names = [reported(name, split) for name in names]
    _show(ranked, reported_names, comparison.differences(ranked, reported_names[0], protocol), output)
    if picture is not None:
        pictures.save(comparison.picture(ranked, seed), picture)
        console.say(f"a row of samples of each in {picture}")


def _compare_curves(
    models: list[str],
    names: list[str],
    against: Against,
    path: Path,
    storage: Path | None,
    output: options.Output,
) -> None:
    files.check_writable(path)
    from raygen import curves_plot, training_curves
    from raygen.runs import Run, default_storage

    found = training_curves.groups([Run.open(name, storage or default_storage()) for name in dict.fromkeys(models)])
    known = training_curves.known_metrics(found, names)
    level = training_curves.level(found, known[0])
    rows = training_curves.stability(found, known[0], against, level)
    curves_plot.save(found, known, against, path)
    if output == "json":
        told = [row.as_json() for row in rows]
        console.show_json({"metric": known[0], "against": against, "level": level, "configurations": told})
        return
    console.show(cards.stability_table(rows, known[0], against, level))
    console.say(f"what epochs showed, not judged anew; curves of {', '.join(map(short, known))} in {path}")


def _show(ranked: list[Compared], names: list[str], differences: list[Difference], output: options.Output) -> None:
    if output == "json":
        ranking = [each.as_json() for each in ranked]
        console.show_json(
            {"metrics": names, "ranking": ranking, "differences": [each.as_json() for each in differences]}
        )
        return
    console.show(cards.comparison_table(ranked, names))
    console.say(cards.circumstances(ranked))
    for place, each in enumerate(differences):
        # Between the first two it decides what to take; of the others only what the order does not show is said.
        if place == 0 or each.is_within:
            console.say(cards.difference(each))


def _names(metrics: str | None) -> list[str]:
    """The metrics of `--metrics frechet,val_ssim`, by their full names; none where it was not given."""
    names = (metrics or "").replace(" ", "").split(",")
    return [PREFIX + name.removeprefix(PREFIX) for name in names if name]


def _suitable(trained: TrainedModel, dataset: Dataset, normal_class: int | None, is_samples: int | None) -> list[str]:
    """All metrics that suit the model and the data; what is left out is said, with what would have it in."""
    from raygen import evaluation
    from raygen.metrics import modes

    left_out = {}
    if normal_class is None and trained.spec.data.normal_class is None:
        left_out["val_anomaly_auroc"] = "--normal-class 0 has it"
    if dataset.name != modes.SOURCE:
        left_out["val_modes"] = f"it is for {modes.SOURCE}"
    if not evaluation.has_classes(trained, dataset):
        left_out |= dict.fromkeys(("val_class_kl", "val_linear_probe"), "it needs labels of two classes or more")
    if is_samples is None:
        left_out[LIKELIHOOD] = f"it takes minutes; --is-samples {IS_SAMPLES} has it"
    suitable = evaluation.suitable_metrics(trained)
    reasons = "; ".join(f"{name} ({reason})" for name, reason in left_out.items() if name in suitable)
    if reasons:
        console.say(f"left out: {reasons}")
    return [name for name in suitable if name not in left_out]
