"""What a run leaves: its best checkpoints collected, and trained models read back."""

from __future__ import annotations

import json
import shutil
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


def collect_best(run: Run) -> None:
    """Fill best/1 … best/k with the checkpoints of the k best trials: spec, weights, metrics and a picture.

    What counts is what the checkpoints hold: a trial whose process was lost may have reported more than it saved.
    """
    spec = run.spec()
    keep = spec.search.keep_best if isinstance(spec, TuneSpec) else 1
    saved = [(trial, checkpoint.read_best_record(trial.checkpoint)) for trial in run.trials()]
    kept = [(trial, record) for trial, record in saved if record is not None]
    kept.sort(key=lambda pair: pair[1].metrics[run.objective], reverse=run.direction == "max")
    dataset = data.load(spec.data)
    filled = run.folder / ".best.partial"
    shutil.rmtree(filled, ignore_errors=True)
    for place, (trial, record) in enumerate(kept[:keep], start=1):
        _fill(filled / str(place), run, trial, record, dataset)
    if kept:
        run.replace_best(filled)


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


def _fill(folder: Path, run: Run, trial: Trial, record: BestRecord, dataset: data.Dataset) -> None:
    spec = trial.spec()
    metrics = {
        "trial": trial.number,
        "epoch": record.epoch,
        "objective": run.objective,
        "value": record.metrics[run.objective],
        "metrics": record.metrics,
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
    images = dataset.held_out[:RECONSTRUCTIONS].float() / 255
    return pictures.grid(torch.cat([images, trained.model.decode(trained.model.encode(images))]), columns=len(images))
