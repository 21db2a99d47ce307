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
from raygen.errors import RunError
from raygen.models._base import ImageShape, Model, Reconstructor, Sampler
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.training import checkpoint
from raygen.training.checkpoint import BestRecord

SAMPLES = 64
RECONSTRUCTIONS = 16
SAMPLES_SEED = 0

SPEC, WEIGHTS, METRICS, PICTURE = "spec.json", "model.safetensors", "metrics.json", "samples.png"


@dataclass(frozen=True)
class TrainedModel:
    """A model with its best weights, in evaluation mode, and how it came about."""

    model: Model
    spec: TrainSpec
    metrics: dict[str, Any]


def load(folder: Path) -> TrainedModel:
    """The model in a best/N folder; raises RunError where the folder is none, CheckpointError if it is damaged."""
    if not (folder / WEIGHTS).is_file():
        raise RunError(f"{folder} holds no checkpoint: name a run, or one of its best/N folders")
    with checkpoint.explained(f"cannot read the checkpoint {folder}"):
        spec = TrainSpec.model_validate_json((folder / SPEC).read_text(encoding="utf-8"))
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        model = models.find(spec.model.name)(spec.model, ImageShape(*metrics["image_shape"]))
        model.load_state_dict(checkpoint.read_weights(folder / WEIGHTS))
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
    if not isinstance(trained.model, Sampler):
        raise RunError(
            f"a model of the family {trained.spec.model.name!r} cannot be sampled: it has no prior over its latents"
        )
    latents = torch.randn(count, trained.model.latent_dim, generator=torch.Generator().manual_seed(seed))
    return torch.cat([trained.model.sample(chunk) for chunk in latents.split(500)])


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
    }
    with checkpoint.explained(f"cannot collect the best checkpoint of trial {trial.number}"):
        folder.mkdir(parents=True)
        save_file(checkpoint.read_best_weights(trial.checkpoint), folder / WEIGHTS)
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
