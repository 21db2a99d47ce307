"""What trained models are judged to be, from Python: `raygen.evaluate` and `raygen.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raygen.api.loading import ModelPlace, load, load_images, loaded, with_prior
from raygen.errors import SpecError
from raygen.metrics import PREFIX
from raygen.protocol import FittedPrior, Protocol
from raygen.record.run import Run

if TYPE_CHECKING:
    from raygen.comparison import Comparison
    from raygen.evaluation_card import EvaluationCard
    from raygen.results import TrainedModel

ON_ALL_VALIDATION_IMAGES = Protocol()
RANKING_METRICS = ("frechet", "precision", "recall", "coverage", "ssim")


def evaluate(
    model: ModelPlace | TrainedModel,
    protocol: Protocol = ON_ALL_VALIDATION_IMAGES,
    *,
    metrics: Sequence[str] | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
    device: str = "auto",
    storage: str | Path | None = None,
) -> EvaluationCard:
    """Judge a model by the named metrics, or by all that suit it, on images that its training has not seen.

    Metrics may lack their prefix: `ssim` is `val_ssim`. The card can write itself beside the model. Raises RunError if
    there is no model, SpecError for a metric or a protocol that does not suit it, DataError for images it cannot read.
    """
    from raygen import evaluation

    trained = loaded(model, device, storage)
    dataset = load_images(trained, data=data, data_root=data_root, image_size=image_size, all_classes=True)
    return evaluation.evaluate(trained, dataset, None if metrics is None else full_names(metrics), protocol)


def compare(
    runs: Sequence[ModelPlace],
    protocol: Protocol = ON_ALL_VALIDATION_IMAGES,
    *,
    metrics: Sequence[str] = RANKING_METRICS,
    prior: FittedPrior | None = None,
    components: int | None = None,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Comparison:
    """Rank the best models of runs on the same metrics, images, samples and seed; the first metric decides.

    With `prior="gmm"` a model that has no prior of its own is sampled from a mixture. Raises SpecError for fewer than
    two runs, no metrics, or models of different images, and as `evaluate` does.
    """
    places = {run.name if isinstance(run, Run) else str(run): run for run in runs}
    check_comparison(list(places), metrics)
    models = {name: load(place, device=device, storage=storage) for name, place in places.items()}
    from raygen import comparison

    comparison.check_data(models)
    candidates = {
        name: trained if trained.prior else with_prior(trained, prior, components) for name, trained in models.items()
    }
    dataset = load_images(next(iter(models.values())), all_classes=True)
    return comparison.compare(candidates, dataset, full_names(metrics), protocol)


def check_comparison(runs: Sequence[str], metrics: Sequence[str]) -> None:
    """Raise SpecError unless there are two different runs or more, and a metric to compare them by."""
    if len(set(runs)) < 2:
        raise SpecError("compare takes two different runs or more; `raygen evaluate` judges one")
    if not metrics:
        raise SpecError("--metrics: name at least one, such as --metrics frechet")


def full_names(metrics: Sequence[str]) -> list[str]:
    """The names of metrics with their prefix, which may be left out."""
    return [PREFIX + name.removeprefix(PREFIX) for name in metrics]
