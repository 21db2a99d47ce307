"""Collects the best models of a run: judged in full, ranked, tested, and kept with all that is known of them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from raygen import corruption, data, interruption, metrics, models
from raygen import device as devices
from raygen.errors import RunInterruptedError
from raygen.metrics import HeldOut
from raygen.models._base import ImageShape, Model
from raygen.record import ranking
from raygen.record.attempt import Attempt
from raygen.record.documents import EpochRecord, Judged, Judgement
from raygen.record.run import METRICS, PICTURE, SPEC, WEIGHTS
from raygen.record.view import Trial, View
from raygen.spec import TuneSpec
from raygen.training import checkpoint, drawing
from raygen.training.distributed import CPU
from raygen.training.evaluation import evaluate


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A trial, the epoch that its checkpoint has the best weights of, and what they came to on validation images."""

    trial: Trial
    saved: EpochRecord
    validation: Judged


@dataclass(frozen=True, kw_only=True)
class _Configuration:
    """What one configuration came to: in its own trial, and on fresh seeds."""

    original: Trial
    best: _Candidate
    fresh: list[float]


Judging = Callable[[Trial, HeldOut], Judged]
"""Tells the metrics of a trial's best weights on all images of a part."""


class Examiner:
    """Judges the best weights of checkpoints in this process, on all images of a held-out part."""

    def __init__(self, dataset: data.Dataset) -> None:
        self._dataset = dataset
        self._images: dict[HeldOut, Tensor] = {}

    def judged(self, trial: Trial, content: bytes, part: HeldOut, device: torch.device) -> Judged:
        """What a trial's checkpoint of this content comes to on a device.

        Raises CheckpointError if it is damaged, OutOfMemoryError if a GPU's memory is too little.
        """
        if part not in self._images:
            # One tensor, whose features are found once for all models.
            self._images[part] = self._dataset.part(part).images.to(torch.float32).div_(255)
        images, spec = self._images[part], trial.spec()
        inputs = corruption.corrupted_for_judging(spec.data, images, spec.evaluation.seed)
        model = _best_model(trial, content, ImageShape(*images.shape[1:]))
        with devices.explained(device):
            values = evaluate(model.to(device), images, spec.evaluation, inputs=inputs)
        return Judged(images=len(images), metrics={metrics.reported(name, part): values[name] for name in values})


def collect_best(attempt: Attempt, elsewhere: Judging | None = None) -> None:
    """Keep the best models of the k best trials: spec, weights, metrics and a picture of each.

    The k best by what their epochs showed are judged once more, on all validation images, and ranked by that: by the
    mean over fresh seeds if they were run on some, as the seed that they were found with is a lucky one. The model is
    that of the best seed. The very best, its fresh seeds and a search's defaults are then judged on all test images.
    What counts is what the checkpoints hold: a trial whose process was lost may have reported more than it saved.
    They are judged `elsewhere`, if there is something that does, else here on the CPU.

    A person who stops a run waits for it to end: then the values of its epochs have to do. Raises RunInterruptedError
    if a stop comes before the images are read.
    """
    with interruption.heeding(attempt.has_heard_stop):
        _collect(attempt, elsewhere, in_full=not attempt.should_stop())


def _collect(attempt: Attempt, elsewhere: Judging | None, *, in_full: bool) -> None:
    view, best = _best(attempt)
    if not best:
        return
    dataset = data.load(view.spec().data, attempt.images(view))
    judging = (elsewhere or _here(attempt, dataset)) if in_full else None
    try:
        judged = _ranked(attempt, view, best, dataset, judging)
    except RunInterruptedError:
        judging, judged = None, _ranked(attempt, view, best, dataset, None)
    if judging is not None and dataset.test is not None:
        with contextlib.suppress(RunInterruptedError):
            _test(attempt, view, judged[0], judging)
    view = attempt.look()
    attempt.put_best([_kept(attempt, view, configuration, dataset) for configuration in judged])


def _here(attempt: Attempt, dataset: data.Dataset) -> Judging:
    """Judges in this process, which has no GPU of its own."""
    examiner = Examiner(dataset)
    return lambda trial, part: examiner.judged(trial, attempt.checkpoint(trial), part, CPU)


def _best(attempt: Attempt) -> tuple[View, list[Trial]]:
    """The run, and its best configurations by what their epochs showed, once all their checkpoints are whole."""
    whole: set[int] = set()
    while True:
        view = attempt.look()
        spec = view.spec()
        keep = spec.search.keep_best if isinstance(spec, TuneSpec) else 1
        kept = [(trial, saved) for trial in view.configurations if (saved := trial.saved_best) is not None]
        kept.sort(key=lambda pair: pair[1].metrics[view.objective], reverse=view.direction == "max")
        best = [trial for trial, _ in kept[:keep]]
        replicates = [each for trial in best for each in view.replicates(trial)]
        needed = {trial.number: trial for trial in (*best, *replicates, *filter(None, [view.defaults]))}
        unknown = [trial for number, trial in needed.items() if number not in whole]
        told = {trial.number: line for trial in unknown if (line := attempt.settle_checkpoint(trial))}
        if not told:
            return view, best
        print(*told.values(), sep="\n", flush=True)
        whole |= needed.keys() - told.keys()


def _ranked(
    attempt: Attempt, view: View, trials: Sequence[Trial], dataset: data.Dataset, judging: Judging | None
) -> list[_Configuration]:
    """The trials' configurations, the best first, by all validation images; None: by what their epochs showed."""
    judged = [_judged(attempt, view, trial, dataset, judging) for trial in trials]
    has_fresh = any(configuration.fresh for configuration in judged)
    return sorted(judged, key=lambda configuration: _rank(view, configuration, has_fresh=has_fresh))


def _judged(
    attempt: Attempt, view: View, original: Trial, dataset: data.Dataset, judging: Judging | None
) -> _Configuration:
    """Judge all checkpoints of one configuration on all validation images; None: take what their epochs showed."""
    candidates = []
    for trial in (original, *view.replicates(original)):
        saved = trial.saved_best
        if saved is None:
            continue
        if judging is None:
            judged = Judged(
                images=min(trial.spec().evaluation.images, len(dataset.validation.images)), metrics=saved.metrics
            )
        else:
            judged = judging(trial, "validation")
            attempt.record_judgement(trial.number, Judgement(epoch=saved.epoch, validation=judged))
        candidates.append(_Candidate(trial=trial, saved=saved, validation=judged))
    return _Configuration(
        original=original,
        best=min(candidates, key=lambda candidate: _sortable(view, candidate.validation.metrics[view.objective])),
        fresh=[
            candidate.validation.metrics[view.objective] for candidate in candidates if candidate.trial is not original
        ],
    )


def _best_model(trial: Trial, content: bytes, shape: ImageShape) -> Model:
    """The model with the best weights in a trial's checkpoint of this content, in evaluation mode."""
    spec = trial.spec()
    model = models.find(spec.model.name)(spec.model, shape)
    with checkpoint.explained(f"cannot read the checkpoint {trial.progress.checkpoint} of trial {trial.number}"):
        model.load_state_dict(checkpoint.best_weights(content))
    return model.eval().requires_grad_(False)


def _test(attempt: Attempt, view: View, best: _Configuration, judging: Judging) -> None:
    """Judge the best, its fresh seeds and the defaults on the images of both held-out parts."""
    view = attempt.look()
    numbers = {best.best.trial.number, *(trial.number for trial in view.replicates(best.original))}
    numbers |= {view.defaults.number} if view.defaults else set()
    for number in sorted(numbers):
        trial = view.trial(number)
        saved = trial.saved_best
        if saved is None:
            continue
        earlier = trial.judgement(saved.epoch)
        validated = earlier.validation if earlier else judging(trial, "validation")
        tested = judging(trial, "test")
        attempt.record_judgement(number, Judgement(epoch=saved.epoch, validation=validated, test=tested))


def _rank(view: View, configuration: _Configuration, *, has_fresh: bool) -> tuple[bool, float]:
    """What sorts the better configurations before the worse: by fresh seeds if there are some."""
    if not has_fresh:
        return _sortable(view, configuration.best.validation.metrics[view.objective])
    return _sortable(view, statistics.fmean(configuration.fresh) if configuration.fresh else math.nan)


def _sortable(view: View, value: float) -> tuple[bool, float]:
    """What sorts the better values of the objective before the worse, and those that are not finite last."""
    is_finite = math.isfinite(value)
    return not is_finite, (-value if view.direction == "max" else value) if is_finite else 0.0


def _kept(
    attempt: Attempt, view: View, configuration: _Configuration, dataset: data.Dataset
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What is known of a configuration's best model, and its files by their names."""
    best = configuration.best
    trial, saved, spec = view.trial(best.trial.number), best.saved, best.trial.spec()
    judgement = trial.judgement(saved.epoch)
    facts = {
        "trial": trial.number,
        "epoch": saved.epoch,
        "objective": view.objective,
        "value": best.validation.metrics[view.objective],
        "metrics": {**saved.metrics, **best.validation.metrics},
        "validation_images": best.validation.images,
        "test": judgement.test.model_dump() if judgement and judgement.test else None,
        "configuration": configuration.original.number,
        "over_seeds": ranking.over_seeds(view, configuration.original),
        "parameters": trial.parameters,
        "image_shape": list(dataset.shape),
        "data": _about(dataset),
        "can_sample": spec.model.prior_name is not None,
        "train_s": trial.train_s(saved.epoch),
    }
    model = _best_model(trial, attempt.checkpoint(trial), ImageShape(*dataset.shape))
    picture = io.BytesIO()
    drawing.picture(model, dataset.validation.images, spec).save(picture, format="PNG")
    files = {
        WEIGHTS: safetensors.torch.save(dict(model.state_dict())),
        SPEC: spec.model_dump_json(indent=1).encode(),
        METRICS: (json.dumps(facts, indent=1) + "\n").encode(),
        PICTURE: picture.getvalue(),
    }
    return facts, files


def _about(dataset: data.Dataset) -> dict[str, Any]:
    """The data set's name, the digest of its images, how many of them are in each part, and files left out of it."""
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = {name: 0 if part is None else len(part.images) for name, part in parts.items()}
    return {"name": dataset.name, "digest": dataset.digest, **counts, "left_out": dict(dataset.damaged)}
