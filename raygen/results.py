"""What a run leaves: its best checkpoints collected, and trained models read back."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from raygen import corruption, data, metrics, models, pictures
from raygen.errors import RunError, SpecError
from raygen.metrics import HeldOut, _features
from raygen.models._base import ImageShape, Model
from raygen.runs import CHECKPOINT, PICTURE, Judged, Judgement, Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.training import checkpoint, drawing
from raygen.training.checkpoint import BestRecord
from raygen.training.evaluation import evaluate

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
        name = self.spec.model.prior_name
        return self.fitted or (Prior(name, self.model) if name else None)

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Images [N, C, H, W] in [0, 1] from latents fixed by `seed`.

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
        return _features.samples(self.prior.sampler, count, seed)


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
        facts = json.loads((folder / METRICS).read_text(encoding="utf-8")) if is_whole else {}
        shape = facts["image_shape"] if facts else data.load(spec.data).shape
        model = models.find(spec.model.name)(spec.model, ImageShape(*shape))
        model.load_state_dict(checkpoint.read_weights(weights))
    return TrainedModel(model.eval().requires_grad_(False), spec, facts)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A trial's checkpoint, and what it came to on validation images."""

    trial: Trial
    record: BestRecord
    validation: Judged


@dataclass(frozen=True, kw_only=True)
class _Configuration:
    """What one configuration came to: in its own trial, and on fresh seeds."""

    number: int
    best: _Candidate
    fresh: list[float]


def collect_best(run: Run) -> None:
    """Fill best/1 … best/k with the checkpoints of the k best trials: spec, weights, metrics and a picture.

    The k best by what their epochs showed are judged once more, on all validation images, and ranked by that: by the
    mean over fresh seeds if they were run on some, as the seed that they were found with is a lucky one. The
    checkpoint is that of the best seed. The very best, its fresh seeds and a search's defaults are then judged on all
    test images. What counts is what the checkpoints hold: a trial whose process was lost may have reported more than
    it saved.
    """
    spec = run.spec()
    keep = spec.search.keep_best if isinstance(spec, TuneSpec) else 1
    saved = [(trial, checkpoint.read_best_record(trial.checkpoint)) for trial in run.configurations()]
    kept = [(trial, record) for trial, record in saved if record is not None]
    kept.sort(key=lambda pair: pair[1].metrics[run.objective], reverse=run.direction == "max")
    if not kept:
        return
    dataset = data.load(spec.data)
    # A person who stops a run waits for it to end: then the values of its epochs have to do.
    in_full = not run.should_stop()
    validation = _as_floats(dataset.validation) if in_full else None
    judged = [_judged(run, trial, dataset, validation) for trial, _ in kept[:keep]]
    has_fresh = any(configuration.fresh for configuration in judged)
    judged.sort(key=lambda configuration: _rank(run, configuration, has_fresh=has_fresh))
    if validation is not None and dataset.test is not None:
        _test(run, judged[0], validation, _as_floats(dataset.test))
    filled = run.folder / ".best.partial"
    shutil.rmtree(filled, ignore_errors=True)
    for place, configuration in enumerate(judged, start=1):
        _fill(filled / str(place), run, configuration, dataset)
    run.replace_best(filled)


def _as_floats(part: data.Part) -> Tensor:
    """All images of a part, [N, C, H, W] in [0, 1]: one tensor, whose features are found once for all models."""
    return part.images.to(torch.float32).div_(255)


def _judged(run: Run, original: Trial, dataset: data.Dataset, validation: Tensor | None) -> _Configuration:
    """Judge all checkpoints of one configuration on all validation images; None: take what their epochs showed."""
    candidates = []
    for trial in (original, *run.replicates(original)):
        record = checkpoint.read_best_record(trial.checkpoint)
        if record is None:
            continue
        if validation is None:
            judged = Judged(min(trial.spec().evaluation.images, len(dataset.validation.images)), record.metrics)
        else:
            judged = _judged_on(validation, trial)
            trial.record_judgement(Judgement(record.epoch, judged))
        candidates.append(_Candidate(trial=trial, record=record, validation=judged))
    return _Configuration(
        number=original.number,
        best=min(candidates, key=lambda candidate: _sortable(run, candidate.validation.metrics[run.objective])),
        fresh=[
            candidate.validation.metrics[run.objective] for candidate in candidates if candidate.trial is not original
        ],
    )


def _judged_on(images: Tensor, trial: Trial) -> Judged:
    """The metrics of a trial's best weights on images [N, C, H, W] in [0, 1]."""
    spec = trial.spec()
    model = models.find(spec.model.name)(spec.model, ImageShape(*images.shape[1:]))
    with checkpoint.explained(f"cannot read the checkpoint of trial {trial.number}"):
        model.load_state_dict(checkpoint.read_best_weights(trial.checkpoint))
    inputs = corruption.corrupted_for_judging(spec.data, images, spec.evaluation.seed)
    return Judged(len(images), evaluate(model.eval().requires_grad_(False), images, spec.evaluation, inputs=inputs))


def _test(run: Run, best: _Configuration, validation: Tensor, test: Tensor) -> None:
    """Judge the best, its fresh seeds and the defaults on the images of both held-out parts."""
    original, defaults = run.trial(best.number), run.defaults()
    trials = {
        trial.number: trial
        for trial in (best.best.trial, *run.replicates(original), *([defaults] if defaults else []))
    }
    for trial in trials.values():
        record = checkpoint.read_best_record(trial.checkpoint)
        if record is None:
            continue
        earlier = trial.judgement(record.epoch)
        validated = earlier.validation if earlier else _judged_on(validation, trial)
        found = _judged_on(test, trial)
        renamed = {metrics.reported(name, "test"): value for name, value in found.metrics.items()}
        trial.record_judgement(Judgement(record.epoch, validated, Judged(found.images, renamed)))


def _rank(run: Run, configuration: _Configuration, *, has_fresh: bool) -> tuple[bool, float]:
    """What sorts the better configurations before the worse: by fresh seeds if there are some."""
    if not has_fresh:
        return _sortable(run, configuration.best.validation.metrics[run.objective])
    return _sortable(run, statistics.fmean(configuration.fresh) if configuration.fresh else math.nan)


def _sortable(run: Run, value: float) -> tuple[bool, float]:
    """What sorts the better values of the objective before the worse, and those that are not finite last."""
    is_finite = math.isfinite(value)
    return not is_finite, (-value if run.direction == "max" else value) if is_finite else 0.0


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


def _fill(folder: Path, run: Run, configuration: _Configuration, dataset: data.Dataset) -> None:
    best = configuration.best
    trial, record, spec = best.trial, best.record, best.trial.spec()
    judgement = trial.judgement(record.epoch)
    facts = {
        "trial": trial.number,
        "epoch": record.epoch,
        "objective": run.objective,
        "value": best.validation.metrics[run.objective],
        "metrics": {**record.metrics, **best.validation.metrics},
        "validation_images": best.validation.images,
        "test": vars(judgement.test) if judgement and judgement.test else None,
        "configuration": configuration.number,
        "over_seeds": run.over_seeds(run.trial(configuration.number)),
        "parameters": trial.parameters,
        "image_shape": list(dataset.shape),
        "data": _about(dataset),
        "can_sample": spec.model.prior_name is not None,
        "train_s": trial.train_s(record.epoch),
    }
    with checkpoint.explained(f"cannot collect the best checkpoint of trial {trial.number}"):
        folder.mkdir(parents=True)
        save_file(checkpoint.read_best_weights(trial.checkpoint), folder / CHECKPOINT)
        (folder / SPEC).write_text(spec.model_dump_json(indent=1), encoding="utf-8")
        (folder / METRICS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    picture = drawing.picture(load(folder).model, dataset.validation.images, spec)
    pictures.save(picture, folder / PICTURE)


def _about(dataset: data.Dataset) -> dict[str, Any]:
    """The data set's name, the digest of its images, how many of them are in each part, and files left out of it."""
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = {name: 0 if part is None else len(part.images) for name, part in parts.items()}
    return {"name": dataset.name, "digest": dataset.digest, **counts, "left_out": dict(dataset.damaged)}
