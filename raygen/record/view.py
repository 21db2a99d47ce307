"""What a run is known to be at one look: everything that was written of it and counts, and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from raygen.errors import InputError, RunError
from raygen.metrics import reported
from raygen.plan import Plan
from raygen.record.documents import (
    STOPPED_EARLY,
    EpochRecord,
    Judgement,
    PackingDocument,
    Progress,
    RequestDocument,
    Result,
    RunDocument,
    Status,
    TrialDocument,
    TrialState,
)
from raygen.record.facts import first_problem

if TYPE_CHECKING:
    from raygen.spec import TrainSpec


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial; `objective` is its best value so far on validation images, reached at `best_epoch`.

    It is over all of them, `validation_images`, if it was judged so at the end, as the best are; None: over those that
    epochs are judged on, as `epoch_objective` is, by which the best are found. `test` is the objective on all test
    images, if it was tested.

    A trial that runs the configuration of another on a fresh seed is its replicate. Of a configuration that has some,
    `mean` and `spread` (sample standard deviation) are over their values of `objective`, `seeds` in all.
    """

    number: int
    parameters: dict[str, Any]
    state: TrialState
    reason: str
    epoch: int
    epochs: int
    train_s: float
    objective: float | None = None
    epoch_objective: float | None = None
    best_epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    images_per_s: float | None = None
    fraction: float = 0.0
    replicate_of: int | None = None
    validation_images: int | None = None
    test: float | None = None
    mean: float | None = None
    spread: float | None = None
    seeds: int = 0


@dataclass(frozen=True)
class Trial:
    """A trial at one look."""

    number: int
    document: TrialDocument
    progress: Progress

    @property
    def parameters(self) -> dict[str, Any]:
        """The values that the search chose, by dotted path."""
        return self.document.parameters

    @property
    def replicate_of(self) -> int | None:
        """The number of the trial whose configuration this one runs on another seed."""
        return self.document.replicate_of

    @property
    def state(self) -> TrialState:
        """The state it is in."""
        return self.progress.state

    @property
    def epochs(self) -> Sequence[EpochRecord]:
        """Its finished epochs."""
        return self.progress.epochs

    @property
    def was_stopped_early(self) -> bool:
        """Whether the search stopped it for what others showed, not for its health or on request."""
        return (self.progress.state, self.progress.reason) == ("stopped", STOPPED_EARLY)

    def spec(self) -> TrainSpec:
        """Its complete spec, with the epochs that are wanted of it now."""
        from raygen.spec import TrainSpec

        training = {**self.document.spec["training"], "epochs": self.progress.epochs_wanted}
        with _explained(f"trial {self.number}"):
            return TrainSpec.model_validate({**self.document.spec, "training": training})

    @property
    def saved_best(self) -> EpochRecord | None:
        """The epoch whose weights its newest checkpoint has as the best; it may have shown better ones since."""
        if self.progress.checkpoint is None:
            return None
        saved = (epoch for epoch in reversed(self.epochs) if epoch.step <= self.progress.checkpoint_step)
        return next((epoch for epoch in saved if epoch.is_best), None)

    def curve(self, objective: str) -> list[float]:
        """What it showed of the objective, epoch by epoch."""
        return [epoch.metrics[objective] for epoch in self.epochs]

    def train_s(self, number: int) -> float | None:
        """Seconds of training up to the end of an epoch, if it is on record."""
        return next((epoch.train_s for epoch in self.epochs if epoch.epoch == number), None)

    def judgement(self, epoch: int) -> Judgement | None:
        """What its best weights came to, if they were of that epoch: a training that went on may have better ones."""
        judgement = self.progress.judgement
        return judgement if judgement is not None and judgement.epoch == epoch else None

    def record(self, objective: str) -> TrialRecord:
        """What is known of it, judged by `objective`."""
        epochs, pace, wanted = self.epochs, self.progress.pace, self.progress.epochs_wanted
        best = next((epoch for epoch in reversed(epochs) if epoch.is_best), None)
        judged = self.judgement(best.epoch) if best else None
        values = {**(best.metrics if best else {}), **(judged.validation.metrics if judged else {})}
        return TrialRecord(
            number=self.number,
            parameters=self.parameters,
            state=self.state,
            reason=self.progress.reason,
            epoch=epochs[-1].epoch if epochs else 0,
            epochs=wanted,
            train_s=max(pace.train_s if pace else 0.0, epochs[-1].train_s if epochs else 0.0),
            objective=values.get(objective),
            epoch_objective=best.metrics[objective] if best else None,
            best_epoch=best.epoch if best else None,
            metrics=values,
            images_per_s=pace.images_per_s if pace else None,
            fraction=max(len(epochs) / wanted, pace.step / pace.steps if pace else 0.0),
            replicate_of=self.replicate_of,
            validation_images=judged.validation.images if judged else None,
            test=judged.test.metrics[reported(objective, "test")] if judged and judged.test else None,
        )


@dataclass(frozen=True)
class View:
    """A run at one look; `attempt` is the newest that has begun, 0 if none has.

    `result` is that of the newest attempt which has one, under `result_key`; `unanswered` are the last of all
    `requests`, those that the attempt has not answered. `packing` is how many trials share a GPU, if it was measured.
    """

    name: str
    document: RunDocument
    spec_json: dict[str, Any]
    status: Status
    attempt: int
    requests: int
    unanswered: tuple[RequestDocument, ...]
    trials: tuple[Trial, ...]
    result: Result | None
    result_key: str | None
    packing: PackingDocument | None

    @property
    def kind(self) -> Literal["train", "tune"]:
        """What made it."""
        return self.document.kind

    @property
    def is_search(self) -> bool:
        """Whether it tries several configurations."""
        return self.kind == "tune"

    @property
    def search(self) -> dict[str, Any]:
        """Its search, as plain JSON; one of a single trial if it is a training."""
        single = {"trials": 1, "keep_best": 1, "replicates": 0, "defaults_first": False}
        found: dict[str, Any] = self.spec_json["search"] if self.is_search else {}
        return {**single, **found}

    @property
    def objective(self) -> str:
        """The metric that it is judged by."""
        return self.document.objective

    @property
    def direction(self) -> Literal["min", "max"]:
        """Which way the objective is better."""
        return self.document.direction

    @property
    def created_at(self) -> datetime:
        """When it was made."""
        return self.document.created_at

    @property
    def plan(self) -> Plan:
        """The devices that it was planned for."""
        return self.document.plan

    def spec(self) -> TrainSpec:
        """Its spec: a TuneSpec if it is a search."""
        from raygen.spec import TrainSpec, TuneSpec

        with _explained(self.name):
            return (TuneSpec if self.is_search else TrainSpec).model_validate(self.spec_json)

    def trial(self, number: int) -> Trial:
        """The trial with that number, which there is."""
        return next(trial for trial in self.trials if trial.number == number)

    @property
    def configurations(self) -> list[Trial]:
        """Its trials without those that run another's configuration again."""
        return [trial for trial in self.trials if trial.replicate_of is None]

    def replicates(self, original: Trial) -> list[Trial]:
        """The trials that run this trial's configuration on fresh seeds."""
        return [trial for trial in self.trials if trial.replicate_of == original.number]

    @property
    def defaults(self) -> Trial | None:
        """A search's trial of the spec as it stands, if it began with that."""
        return next(iter(self.configurations), None) if self.search["defaults_first"] else None

    @property
    def best(self) -> Sequence[dict[str, Any]]:
        """What is known of each of the best models, the very best first."""
        return self.result.best if self.result else ()

    @property
    def can_sample(self) -> bool:
        """Whether its best model has a prior to sample from."""
        return bool(self.best and self.best[0].get("can_sample"))


@contextmanager
def _explained(whose: str) -> Iterator[None]:
    """Raise what keeps a spec from being one as RunError in one line."""
    try:
        yield
    except ValidationError as error:
        raise RunError(f"the spec of {whose} is damaged: {first_problem(error)}") from error
    except (InputError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"the spec of {whose} is damaged: {error}") from error


def spread(found: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of the values there are, and their number."""
    values = [value for value in found if value is not None]
    return {
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }
