"""The parts of a spec: every choice with its one default."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from raygen.errors import SpecError
from raygen.optimizer_options import AdamOptions
from raygen.space import Space
from raygen.spec.settings import Settings, explained, nested

Precision = Literal["fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
Sampler = Literal["optuna", "random", "grid"]
Scheduler = Literal["asha", "fifo", "median"]


class TrainingOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How long and how to train."""

    epochs: int = Field(30, ge=1, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images of one step over all devices together")
    precision: Precision = Field("fp32", description="bf16: mixed precision; weights stay fp32")
    compile: Compile = Field(
        "auto",
        description="auto: on a GPU steps are recorded and replayed, and losses compiled, if the planned steps "
        "repay that; on: both wherever they can be, on a CPU too; off: neither",
    )
    images_on: Literal["auto", "device", "host"] = Field(
        "auto", description="where training images stay; auto: on the device if they fit beside the model"
    )
    tf32: bool = Field(True, description="multiply float32 in TensorFloat-32 on a GPU, while training alone")
    cudnn_benchmark: bool = Field(
        False, description="let cuDNN try which algorithms are fastest; a resumed training may then differ in rounding"
    )
    channels_last: bool = Field(False, description="lay out images and convolutions with the channels last")
    ema_half_life_images: int = Field(
        0, ge=0, description="evaluate and save a moving average of the weights with this half-life; 0: none"
    )
    checkpoint_every_s: float = Field(60.0, ge=0, description="seconds of training between checkpoints at most")


class EvaluationOptions(BaseModel, frozen=True, extra="forbid"):
    """How a model is judged after each epoch, on validation images."""

    objective: str = Field(description="the metric that decides which checkpoint is best")
    metrics: tuple[str, ...] = Field((), description="further metrics to report")
    images: int = Field(2000, ge=2, description="validation images to judge epochs on, at most")
    seed: int = Field(0, ge=0, description="of the samples and latents drawn for judging")
    pictures: Literal["doubling", "all", "none"] = Field(
        "doubling",
        description="epochs whose pictures stay in samples/ beside that of the last: 1, 2, 4, 8, …, or all; "
        "none: no pictures at all",
    )

    def keeps_picture(self, epoch: int) -> bool:
        """Whether the picture of this epoch, counted from 1, stays when there are later ones."""
        return self.pictures == "all" or (self.pictures == "doubling" and epoch.bit_count() == 1)

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The objective first, then the further metrics, each once."""
        return tuple(dict.fromkeys((self.objective, *self.metrics)))


class HealthOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """When a training that has gone wrong is stopped, at the end of an epoch; see raygen.training.health."""

    enabled: bool = Field(True, description="stop trainings that have gone wrong")
    grace_steps: int = Field(300, ge=0, description="steps before a training may be stopped")
    patience_epochs: int = Field(10, ge=1, description="epochs in a row that must show the same ailment")
    min_coverage: float = Field(0.02, ge=0, le=1, description="mode collapse: coverage below this; 0: never")
    min_discriminator_loss: float = Field(
        0.02, ge=0, le=1, description="discriminator saturation: loss below this part of a guess's; 0: never"
    )
    min_active_units: int = Field(1, ge=0, description="posterior collapse: fewer active latent units; 0: never")


class WarmStart(BaseModel, frozen=True, extra="forbid"):
    """Weights that a training begins with in the place of some of the initial ones; see raygen.warm_start."""

    source: str = Field(description="the model that they come from, which is not needed any more")
    configuration: str = Field(description="digest of how that model was trained, seeds and devices apart")
    digest: str = Field(description="of the file in the run that holds them")


class Resources(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The devices a job may use; what is left out follows from what the cluster has."""

    gpus: int | None = Field(None, ge=0, description="GPUs in all; none: all there are")
    cpus: int | None = Field(None, ge=1, description="CPU cores in all; none: all there are")
    gpus_per_trial: float | Literal["auto"] | None = Field(
        None, description="below 1: trials share a GPU; auto: as many as is measured to be best"
    )
    cpus_per_trial: int | None = Field(None, ge=1, description="CPU cores for each trial")
    workers: int | tuple[int, int] | None = Field(
        None, description="processes that share each training; 1-4: at least 1, as many as there are nodes for"
    )

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _read_share(cls, gpus: Any) -> Any:
        if gpus is None or gpus == "auto":
            return gpus
        try:
            share = 0.0 if isinstance(gpus, bool) else float(gpus)
        except (TypeError, ValueError):
            share = 0.0
        if not 0 < share < math.inf:
            raise ValueError("write a number of GPUs above 0, such as 0.5 or 2, or auto")
        return share

    @field_validator("workers", mode="before")
    @classmethod
    def _read_range(cls, workers: Any) -> Any:
        if not isinstance(workers, str):
            return workers
        numbers = [int(part) for part in workers.split("-") if part.isdecimal()]
        if len(numbers) != workers.count("-") + 1 or len(numbers) > 2:
            raise ValueError("write a number of processes, or a range such as 1-4")
        return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])

    @field_validator("workers")
    @classmethod
    def _check_range(cls, workers: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
        if fewest is not None and not 1 <= fewest <= (most or 0):
            raise ValueError("name 1 process or more, the fewest first, such as 1-4")
        return most if fewest == most else workers

    @property
    def most_workers(self) -> int | None:
        """The processes of each training, if they are named."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def elastic_from(self) -> int | None:
        """The processes that a training goes on with at least while nodes are away; None: all."""
        return self.workers[0] if isinstance(self.workers, tuple) else None


class SearchOptions(BaseModel, frozen=True, extra="forbid"):
    """How a search proceeds."""

    space: Space
    trials: int = Field(16, ge=1, description="configurations to try")
    sampler: Sampler = Field(
        "optuna", description="optuna: tree-structured Parzen estimator; grid: every configuration of listed values"
    )
    defaults_first: bool = Field(True, description="the first trial is the spec as it stands, and runs to its end")
    scheduler: Scheduler = Field(
        "asha", description="asha: successive halving; median: stop below the median; fifo: stop nothing"
    )
    grace_fraction: float = Field(0.05, gt=0, le=1, description="part of the epochs before a trial may be stopped")
    reduction_factor: int = Field(3, ge=2, description="asha goes on with one trial in so many at each rung")
    keep_best: int = Field(3, ge=1, description="best checkpoints to collect")
    replicates: int = Field(0, ge=0, description="fresh seeds that the configurations of the best are run on too")

    @field_validator("scheduler", mode="before")
    @classmethod
    def _refuse_pbt(cls, name: Any) -> Any:
        if name == "pbt":
            raise ValueError(
                "population based training hands checkpoints from trial to trial through Ray, but here they stay in "
                "the record; type asha, median or fifo"
            )
        return name


def resources(settings: Settings) -> Resources:
    """The resources in a job's settings, readable before the rest of its spec; raises SpecError."""
    values = nested({path: value for path, value in settings.items() if path.startswith("resources.")})
    try:
        return Resources.model_validate(values.get("resources", {}))
    except ValidationError as error:
        raise SpecError(explained(error, list(Resources.model_fields), AdamOptions)) from error
