"""What a run leaves: its best checkpoints collected, and trained models read back."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from raygen import data, models, pictures
from raygen.errors import RunError, SpecError
from raygen.metrics import _features
from raygen.models._base import ImageShape, Model, Reconstructor, Sampler
from raygen.runs import CHECKPOINT, PICTURE, Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.training import checkpoint
from raygen.training.checkpoint import BestRecord
from raygen.training.distributed import CPU
from raygen.training.evaluation import evaluate, held_out_images

SAMPLES = 64
RECONSTRUCTIONS = 16
SAMPLES_SEED = 0

SPEC, METRICS = "spec.json", "metrics.json"


@dataclass(frozen=True)
class Prior:
    """What latents are drawn from, in words, and the model that turns them into images."""

    name: str
    sampler: Model


@dataclass(frozen=True)
class TrainedModel:
    """A model with its best weights, in evaluation mode, and how it came about.

    `metrics` is empty for weights that lie outside a run; `fitted` is a prior fitted afterwards (raygen.prior).
    """

    model: Model
    spec: TrainSpec
    metrics: dict[str, Any]
    fitted: Prior | None = None

    @property
    def prior(self) -> Prior | None:
        """What it is sampled from: the fitted prior, else its own, else none."""
        own = Prior("standard normal", self.model) if isinstance(self.model, Sampler) else None
        return self.fitted or own


def load(place: Path) -> TrainedModel:
    """The model in a best/N folder, or of a .safetensors file with its spec.json beside it.

    Raises RunError where there is none, CheckpointError if a file is damaged.
    """
    weights = place if place.is_file() else place / CHECKPOINT
    folder = weights.parent
    if not weights.is_file():
        raise RunError(f"{place} holds no checkpoint: name a run, or one of its best/N folders")
    if place.is_file() and not (folder / SPEC).is_file():
        raise RunError(f"{place} has no {SPEC} beside it: name a run, or one of its best/N folders")
    with checkpoint.explained(f"cannot read the checkpoint {place}"):
        spec = TrainSpec.model_validate_json((folder / SPEC).read_text(encoding="utf-8"))
        is_whole = (folder / METRICS).is_file()
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8")) if is_whole else {}
        shape = metrics["image_shape"] if metrics else data.load(spec.data).shape
        model = models.find(spec.model.name)(spec.model, ImageShape(*shape))
        model.load_state_dict(checkpoint.read_weights(weights))
    return TrainedModel(model.eval().requires_grad_(False), spec, metrics)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A trial's checkpoint, with its metrics on so many held-out images."""

    trial: Trial
    record: BestRecord
    metrics: dict[str, float]
    images: int


@dataclass(frozen=True, kw_only=True)
class _Configuration:
    """What one configuration came to on all its seeds."""

    number: int
    best: _Candidate
    values: list[float]

    @property
    def over_seeds(self) -> dict[str, Any]:
        """Mean and sample standard deviation of the objective, as a TrialRecord has them."""
        several = len(self.values) > 1
        spread = statistics.stdev(self.values) if several else None
        return {"mean": statistics.fmean(self.values), "spread": spread, "seeds": len(self.values)}


def collect_best(run: Run) -> None:
    """Fill best/1 … best/k with the checkpoints of the k best trials: spec, weights, metrics and a picture.

    A search's are judged once more, on all held-out images, and ranked by the mean over the seeds that each
    configuration was run on; the checkpoint is that of the best seed. What counts is what the checkpoints hold: a
    trial whose process was lost may have reported more than it saved.
    """
    spec = run.spec()
    keep = spec.search.keep_best if isinstance(spec, TuneSpec) else 1
    saved = [(trial, checkpoint.read_best_record(trial.checkpoint)) for trial in run.configurations()]
    kept = [(trial, record) for trial, record in saved if record is not None]
    kept.sort(key=lambda pair: pair[1].metrics[run.objective], reverse=run.direction == "max")
    dataset = data.load(spec.data)
    judged = [_judged(run, trial, dataset) for trial, _ in kept[:keep]]
    judged.sort(key=lambda configuration: configuration.over_seeds["mean"], reverse=run.direction == "max")
    filled = run.folder / ".best.partial"
    shutil.rmtree(filled, ignore_errors=True)
    for place, configuration in enumerate(judged, start=1):
        _fill(filled / str(place), run, configuration, dataset)
    if kept:
        run.replace_best(filled)


def _judged(run: Run, original: Trial, dataset: data.Dataset) -> _Configuration:
    """Judge all checkpoints of one configuration on all held-out images."""
    # A person who stops a run waits for it to end: then the values of its epochs have to do.
    in_full = run.kind == "tune" and not run.should_stop()
    candidates = []
    for trial in (original, *run.replicates(original)):
        record = checkpoint.read_best_record(trial.checkpoint)
        if record is not None:
            candidates.append(_candidate(trial, record, dataset, in_full=in_full))
    pick = max if run.direction == "max" else min
    return _Configuration(
        number=original.number,
        best=pick(candidates, key=lambda candidate: candidate.metrics[run.objective]),
        values=[candidate.metrics[run.objective] for candidate in candidates],
    )


def _candidate(trial: Trial, record: BestRecord, dataset: data.Dataset, *, in_full: bool) -> _Candidate:
    spec, everything = trial.spec(), len(dataset.validation.images)
    images = min(spec.evaluation.images, everything)
    if not in_full or images == everything:
        return _Candidate(trial=trial, record=record, metrics=record.metrics, images=images)
    model = models.find(spec.model.name)(spec.model, ImageShape(*dataset.shape))
    with checkpoint.explained(f"cannot read the checkpoint of trial {trial.number}"):
        model.load_state_dict(checkpoint.read_best_weights(trial.checkpoint))
    options = spec.evaluation.model_copy(update={"images": everything})
    held_out = held_out_images(dataset.validation.images, options, CPU)
    metrics = evaluate(model.eval().requires_grad_(False), held_out, options)
    return _Candidate(trial=trial, record=record, metrics=metrics, images=everything)


def sample(trained: TrainedModel, count: int, seed: int) -> Tensor:
    """Images [N, C, H, W] in [0, 1] from latents fixed by `seed`; raises RunError where the model cannot."""
    if trained.prior is None:
        raise RunError(
            f"a model of the family {trained.spec.model.name!r} cannot be sampled: it has no prior over its latents; "
            "--prior gmm fits one"
        )
    return torch.cat(list(_features.samples(trained.prior.sampler, count, seed)))


def check_shape(trained: TrainedModel, dataset: data.Dataset) -> None:
    """Raise SpecError where the data set's images are of another shape than the model's."""
    if dataset.shape != tuple(trained.model.shape):
        raise SpecError(
            f"the model takes images of {trained.model.shape}, but {dataset.name} has {ImageShape(*dataset.shape)}: "
            "use --image-size or the data set that it was trained on"
        )


def _fill(folder: Path, run: Run, configuration: _Configuration, dataset: data.Dataset) -> None:
    best = configuration.best
    trial, record, spec = best.trial, best.record, best.trial.spec()
    metrics = {
        "trial": trial.number,
        "epoch": record.epoch,
        "objective": run.objective,
        "value": record.metrics[run.objective],
        "metrics": record.metrics,
        "full_evaluation": {"images": best.images, "metrics": best.metrics},
        "configuration": configuration.number,
        "over_seeds": configuration.over_seeds,
        "parameters": trial.parameters,
        "image_shape": list(dataset.shape),
        "can_sample": issubclass(models.find(spec.model.name), Sampler),
        "train_s": trial.train_s(record.epoch),
    }
    with checkpoint.explained(f"cannot collect the best checkpoint of trial {trial.number}"):
        folder.mkdir(parents=True)
        save_file(checkpoint.read_best_weights(trial.checkpoint), folder / CHECKPOINT)
        (folder / SPEC).write_text(spec.model_dump_json(indent=1), encoding="utf-8")
        (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    pictures.save(_picture(load(folder), dataset), folder / PICTURE)


def _picture(trained: TrainedModel, dataset: data.Dataset) -> Image.Image:
    """Samples, or for a model that has none held-out images above their reconstructions."""
    if isinstance(trained.model, Sampler):
        return pictures.grid(sample(trained, SAMPLES, SAMPLES_SEED))
    assert isinstance(trained.model, Reconstructor), "a model samples, reconstructs or both"
    images = dataset.validation.images[:RECONSTRUCTIONS].float() / 255
    return pictures.grid(torch.cat([images, trained.model.decode(trained.model.encode(images))]), columns=len(images))
