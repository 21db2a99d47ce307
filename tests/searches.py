"""Runs that never ran, as the processes of their attempts would have left them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raygen import metrics
from raygen.data import Dataset
from raygen.plan import Plan
from raygen.record.attempt import Attempt
from raygen.record.documents import EpochRecord, TrialState
from raygen.record.run import Run
from raygen.record.trial import TrialWriter
from raygen.record.view import Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.storage import Storage
from raygen.training.loop import fit

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
HEAD = 'model = "vae"\nobjective = "val_elbo"\ndirection = "max"\n\n[parameters]\n'


def create(storage: Storage | str | Path, spec: TrainSpec, *, name: str | None = None, **options: Any) -> Run:
    """A run that nobody has begun, a search if its spec is one's."""
    where = storage if isinstance(storage, Storage) else Storage(storage)
    kind = "tune" if isinstance(spec, TuneSpec) else "train"
    return Run.create(where, kind, spec, PLAN, metrics.find(spec.evaluation.objective).direction, name=name, **options)


def begin(run: Run) -> Attempt:
    """The next attempt at a run; its thread, which writes the log and looks for a wish to stop, has ended already."""
    attempt = Attempt.begin(run.storage, run.name, run.look().attempt + 1)
    assert attempt is not None
    attempt.close()
    return attempt


def run_of(attempt: Attempt) -> Run:
    """The run that an attempt is at."""
    return Run(attempt.storage, attempt.run)


def search(storage: Path, parameters: str, *, epochs: int = 9, **settings: Any) -> Attempt:
    """An attempt at a search over these lines of a space, without trials; the higher its objective, the better."""
    storage.mkdir(exist_ok=True)
    space = storage / "space.toml"
    space.write_text(HEAD + parameters)
    search_settings = {f"search.{name}": value for name, value in settings.items()}
    spec = TuneSpec.search_over(str(space), "vae", {"training.epochs": epochs, **search_settings})
    return begin(create(storage, spec, name="search"))


def add_trial(
    attempt: Attempt,
    parameters: Mapping[str, Any],
    values: Sequence[float],
    *,
    state: TrialState = "finished",
    **options: Any,
) -> Trial:
    """The next trial, with these values of the objective, one for each epoch; `options` are `record_epochs`'s."""
    view = attempt.look()
    spec = view.spec()
    own = spec.trial_spec(parameters) if isinstance(spec, TuneSpec) else spec
    trial = attempt.new_trial(len(view.trials) + 1, parameters, own)
    return record_epochs(attempt, trial, [{view.objective: value} for value in values], state=state, **options)


def record_epochs(
    attempt: Attempt,
    trial: Trial,
    values: Sequence[Mapping[str, float]],
    *,
    state: TrialState = "finished",
    steps: int = 1,
    epoch_s: float = 1.0,
    **progress: Any,
) -> Trial:
    """Write down what a trial's epochs showed, each of so many steps and seconds, and the state that it is in."""
    view = attempt.look()
    objective = metrics.find(view.objective)
    best: float | None = None
    epochs = []
    for number, shown in enumerate(values, start=1):
        value = shown.get(view.objective)
        is_best = value is not None and (best is None or objective.is_better(value, than=best))
        best = value if is_best else best
        epochs.append(
            EpochRecord(
                epoch=number, step=steps * number, metrics=dict(shown), train_s=epoch_s * number, is_best=is_best
            )
        )
    return attempt.change_trial(
        trial.number,
        lambda before: before.model_copy(update={"epochs": tuple(epochs), "state": state, **progress}),
    )


def best_facts(trial: int = 1, **others: Any) -> dict[str, Any]:
    """What is known of a best model that was never trained, with `others` in the place of what is."""
    facts = {"trial": trial, "configuration": trial, "epoch": 1, "image_shape": [1, 8, 8], "can_sample": False}
    return {**facts, "value": 0.1, "data": {"test": 180}, "test": None, "validation_images": 180, **others}


def train_trial(attempt: Attempt, number: int, parameters: Mapping[str, Any], dataset: Dataset) -> Trial:
    """A trial of these parameters that is trained to its end in this process."""
    spec = attempt.look().spec()
    attempt.new_trial(number, parameters, spec.trial_spec(parameters) if isinstance(spec, TuneSpec) else spec)
    return train(attempt, number, dataset)


def train(attempt: Attempt, number: int, dataset: Dataset) -> Trial:
    """Train a trial in this process from where it is to its end."""
    with contextlib.closing(TrialWriter.begin(attempt.place(number))) as writer:
        writer.fetch_checkpoint()
        for epoch in fit(writer.spec(), dataset, writer.checkpoint, on_saved=writer.record_checkpoint):
            writer.record_epoch(epoch)
        writer.set_state("finished")
    return attempt.look().trial(number)
