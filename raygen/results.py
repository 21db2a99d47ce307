"""Trained models, read back from a run or from files."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from raygen import data, models, numerics
from raygen import device as devices
from raygen.errors import CheckpointError, RunError, SpecError
from raygen.metrics import HeldOut, _features
from raygen.models._base import ImageShape, Model
from raygen.record.run import METRICS, SPEC, WEIGHTS, Run
from raygen.spec import TrainSpec
from raygen.training import checkpoint


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
    images: data.InStorage | None = None
    """Where the images are that it was trained on, if they were sent along."""

    @property
    def prior(self) -> Prior | None:
        """What it is sampled from: the fitted prior, else its own, else none."""
        name = self.spec.model.prior_name
        return self.fitted or (Prior(name, self.model) if name else None)

    @property
    def device(self) -> torch.device:
        """What it runs on."""
        return self.model.device

    def to(self, device: torch.device) -> TrainedModel:
        """The same model on a device, a copy if it is on another; raises OutOfMemoryError if a GPU has no room."""
        if device == self.device:
            return self
        with devices.explained(device):
            model, fitted = copy.deepcopy((self.model, self.fitted))  # together, as a fitted prior holds the model
            if fitted is not None:
                fitted.sampler.to(device)
            return replace(self, model=model.to(device), fitted=fitted)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """What the model is run in: without gradients, in exact float32, so that values on all devices compare.

        Raises OutOfMemoryError, which says what to type, if its GPU's memory is too little.
        """
        with torch.no_grad(), numerics.exact(), devices.explained(self.device):
            yield

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Images [N, C, H, W] in [0, 1] from latents fixed by `seed`, on the CPU.

        Raises RunError if it has no prior, SpecError for less than one image.
        """
        return torch.cat(list(self.samples(count, seed=seed)))

    def samples(self, count: int, *, seed: int = 0) -> Iterator[Tensor]:
        """The same in batches [B, C, H, W], of which one is in memory at a time; raises at once."""
        if self.prior is None:
            raise RunError(
                f"a model of the family {self.spec.model.name!r} cannot be sampled: it has no prior over its latents; "
                "--prior gmm fits one"
            )
        if count < 1:
            raise SpecError(f"1 sample or more is drawn, not {count}")
        return self._on_cpu(_features.samples(self.prior.sampler, count, seed))

    def _on_cpu(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            with self.at_work():  # not beyond a batch: whoever takes it has other work
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.cpu()


def of_run(run: Run, place: int = 1) -> TrainedModel:
    """The best model of a run in that place; raises RunError if there is none, CheckpointError if it is damaged."""
    trained = _from_files(run.best_files(place), f"best model {place} of {run.name}")
    return replace(trained, images=run.images)


def load(place: Path) -> TrainedModel:
    """The model in a folder as `raygen get` makes them, or of a .safetensors file with its spec.json beside it.

    Raises RunError if there is none, CheckpointError if a file is damaged.
    """
    weights = place if place.is_file() else place / WEIGHTS
    if not weights.is_file():
        raise RunError(f"{place} holds no checkpoint: name a run, or a folder that `raygen get` has made")
    if place.is_file() and not (weights.parent / SPEC).is_file():
        raise RunError(f"{place} has no {SPEC} beside it: name a run, or a folder that `raygen get` has made")
    with checkpoint.explained(f"cannot read the checkpoint {place}"):
        found = {name: weights.parent / name for name in (SPEC, METRICS)}
        files = {name: path.read_bytes() for name, path in found.items() if path.is_file()}
        files[WEIGHTS] = weights.read_bytes()
    return _from_files(files, str(place))


def _from_files(files: Mapping[str, bytes], where: str) -> TrainedModel:
    with _reading(where, SPEC):
        spec = TrainSpec.model_validate_json(files[SPEC])
    with _reading(where, METRICS):
        facts = _facts(files[METRICS]) if METRICS in files else {}
        shape = facts["image_shape"] if facts else data.load(spec.data).shape
        model = models.find(spec.model.name)(spec.model, ImageShape(*shape))
    with _reading(where, WEIGHTS):
        model.load_state_dict(safetensors.torch.load(files[WEIGHTS]))
    return TrainedModel(model.eval().requires_grad_(False), spec, facts)


@contextlib.contextmanager
def _reading(where: str, name: str) -> Iterator[None]:
    """Raise what goes wrong with one of a model's files as CheckpointError, with what to do."""
    try:
        with checkpoint.explained(f"cannot read the checkpoint {where}: {name}"):
            yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}; put a whole copy in its place, or train anew") from error


def _facts(content: bytes) -> dict[str, Any]:
    facts = json.loads(content)
    if not isinstance(facts, dict):
        raise ValueError(f"{METRICS} holds no JSON object")
    return facts


def held_out_part(trained: TrainedModel, dataset: data.Dataset, split: HeldOut) -> data.Part:
    """The images of a part that the model's training has not seen.

    Raises SpecError for test images that it may have seen, or if there are none.
    """
    if split == "test" and trained.spec.version == 1 and not dataset.has_official_test:
        raise SpecError(
            f"this model was made before test images of {dataset.name} were set apart, and may have been trained on "
            "them: use --split validation, or type a new "
            f"`raygen train {trained.spec.model.name} --data {trained.spec.data.source}`"
        )
    if split == "test" and dataset.test is None:
        raise SpecError(f"{dataset.name} has no test images ({dataset.no_test}): use --split validation")
    return dataset.part(split)


def check_shape(trained: TrainedModel, dataset: data.Dataset) -> None:
    """Raise SpecError where the data set's images are of another shape than the model's."""
    if dataset.shape != tuple(trained.model.shape):
        raise SpecError(
            f"the model takes images of {trained.model.shape}, but {dataset.name} has {ImageShape(*dataset.shape)}: "
            "use --image-size or the data set that it was trained on"
        )
