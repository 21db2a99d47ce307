"""What a job is: every choice with its one default, as frozen records that are plain JSON on the way.

`TrainSpec` says how to train one model; `TuneSpec` adds what a search varies. A field is addressed by its dotted
path, `optimizer.lr`, on the command line (`--set`), in search spaces and in Python.
"""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from raygen import metrics, models, versions
from raygen import space as space_files
from raygen.data import DataOptions
from raygen.errors import SpaceError, SpecError
from raygen.models._options import ModelOptions
from raygen.optimizer_options import OPTIMIZERS, AdamOptions, OptimizerOptions, options_of
from raygen.space import Space

Precision = Literal["fp32", "bf16"]
Sampler = Literal["optuna", "random", "grid"]
Scheduler = Literal["asha", "fifo", "median"]

Settings = Mapping[str, Any]
"""Values by dotted path, such as {"optimizer.lr": 3e-4}."""


class TrainingOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How long and how to train."""

    epochs: int = Field(30, ge=1, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images of one step over all devices together")
    precision: Precision = Field("fp32", description="bf16: mixed precision; weights stay fp32")
    compile: bool = Field(False, description="compile the networks with torch.compile")
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


NOT_OF_A_CONFIGURATION: dict[str, Any] = {
    "seed": True,
    "resources": True,
    "training": {"checkpoint_every_s"},
    "evaluation": {"pictures"},
    "warm_start": {"source", "digest"},
}
"""Fields that may differ between trainings of one configuration."""


class WarmStart(BaseModel, frozen=True, extra="forbid"):
    """Weights that a training begins with in the place of some of the initial ones; see raygen.warm_start."""

    source: str = Field(description="the model that they come from, which is not needed any more")
    configuration: str = Field(description="digest of how that model was trained, seeds and devices apart")
    digest: str = Field(description="of the file in the run folder that holds them")


class Resources(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The devices a job may use; what is left out follows from what the cluster has."""

    gpus: int | None = Field(None, ge=0, description="GPUs in all; none: all there are")
    cpus: int | None = Field(None, ge=1, description="CPU cores in all; none: all there are")
    gpus_per_trial: float | None = Field(None, gt=0, description="below 1: trials share a GPU")
    cpus_per_trial: int | None = Field(None, ge=1, description="CPU cores for each trial")
    workers: int | tuple[int, int] | None = Field(
        None, description="processes that share each training; 1-4: at least 1, as many as there are nodes for"
    )

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


def _typed_options(value: Any) -> Any:
    if isinstance(value, ModelOptions) or not isinstance(value, Mapping):
        return value
    return models.find(value["name"]).Options.model_validate(value)


def _typed_optimizer(value: Any) -> Any:
    if isinstance(value, OptimizerOptions) or not isinstance(value, Mapping):
        return value
    return options_of(value).model_validate(value)


class TrainSpec(BaseModel, frozen=True, extra="forbid"):
    """Everything that decides what one training does; the same spec gives the same weights.

    `version` says what its fields mean (raygen.versions); a document that names none is of version 1.
    """

    version: Literal[1, 2, 3] = Field(description="of the fields' meaning: that of the Raygen which made the spec")
    model: Annotated[SerializeAsAny[ModelOptions], BeforeValidator(_typed_options)]
    data: DataOptions = Field(default_factory=DataOptions)
    optimizer: Annotated[SerializeAsAny[OptimizerOptions], BeforeValidator(_typed_optimizer)] = Field(
        default_factory=AdamOptions
    )
    training: TrainingOptions = Field(default_factory=TrainingOptions)
    evaluation: EvaluationOptions
    health: HealthOptions = Field(default_factory=HealthOptions)
    resources: Resources = Field(default_factory=Resources)
    seed: int = Field(0, ge=0, description="of initial weights, data order and training noise")
    warm_start: WarmStart | None = Field(
        None,
        description="of a gan, what its generator begins as (--from sets it); none: initial weights from the seed",
    )

    @classmethod
    def create(cls, model: str, settings: Settings) -> Self:
        """The spec of `model` with some fields set; raises SpecError naming the field and the nearest valid one."""
        if "model.name" in settings:
            raise SpecError(f"model.name: the model is {model!r} already; name another in its place")
        _check_settings(settings)
        return cls._validated(_nested({"version": versions.VERSION, "model.name": model, **settings}))

    def with_settings(self, settings: Settings) -> Self:
        """This spec with some fields set otherwise; raises SpecError like `create`.

        Another optimizer keeps what it has in common with this one, such as the learning rate.
        """
        _check_settings(settings)
        return self._validated(_merged_spec(self.model_dump(mode="json"), _nested(settings)))

    def configuration(self) -> str:
        """What is trained and how, as JSON: all but seeds, devices, and what is kept on the way."""
        return self.model_dump_json(exclude=NOT_OF_A_CONFIGURATION)

    def warm_started(self, warm_start: WarmStart) -> Self:
        """This spec for a training that begins with other weights."""
        return self.model_copy(update={"warm_start": warm_start})

    def batch_sizes(self) -> tuple[int, int]:
        """The smallest and the largest batch size that this job may use."""
        return self.training.batch_size, self.training.batch_size

    @classmethod
    def paths(cls, model: str, optimizer: type[OptimizerOptions] = AdamOptions) -> list[str]:
        """The dotted path of every field that can be set, for `model` and an optimizer."""
        chosen = {ModelOptions: models.find(model).Options, OptimizerOptions: optimizer}
        return [path for path in _paths(cls, chosen) if path not in ("version", "warm_start")]

    def check_trainable(self) -> None:
        """Raise SpecError if the version that made this spec meant another training by it."""
        penalty = self.model.differentiates_twice
        if self.version == 1 and penalty is not None:
            setting = f"model.loss={penalty}" if penalty == "wgan-gp" else f"model.{penalty}=…"
            raise SpecError(
                f"this spec sets a gradient penalty ({penalty}) of images in [0, 1]; it is of images in [-1, 1] now: "
                f"type a new `raygen train {self.model.name} --set {setting}` (r1 needs 4 times the weight it had)"
            )
        if self.version < 3 and self.data.corruption is not None:
            raise SpecError(
                f"this spec sets noise on inputs (noise_std), without which epochs were judged; they are judged with "
                f"it now: type a new `raygen train {self.model.name} --set data.corruption=noise "
                f"--set data.corruption_std={self.data.corruption_std:g}`"
            )

    @classmethod
    def _validated(cls, values: dict[str, Any]) -> Self:
        model = values["model"]["name"]
        models.check(model)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            optimizer = options_of(values.get("optimizer"))
            raise SpecError(_explained(error, cls.paths(model, optimizer), optimizer)) from error

    @model_validator(mode="before")
    @classmethod
    def _start_from_recipe(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("model"), Mapping):
            return _merged_spec(models.find(values["model"]["name"]).recipe, versions.read_spec(values))
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for reason in (self.model.contradiction, self.data.unused_augmentation):
            if reason is not None:
                raise SpecError(reason)
        return self

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        for name in self.evaluation.all_metrics:
            _check_metric(name, self.model.name)
            self._check_prior(name)
        return self

    def _check_prior(self, metric: str) -> None:
        """Raise SpecError if the metric judges samples, and the model's options leave it without a prior."""
        from raygen.models import _base

        if metrics.find(metric).requires is _base.Sampler and self.model.prior_name is None:
            is_objective = metric == self.evaluation.objective
            way = "type --objective val_mse" if is_objective else "leave it out of evaluation.metrics"
            raise SpecError(
                f"{metric} judges samples, and this {self.model.name} has no prior, as neither samples nor latents "
                f"are judged: {way}, or set model.adversarial=both"
            )

    @model_validator(mode="after")
    def _check_corruption(self) -> Self:
        if self.data.corruption is not None and not self.model.learns_to_reconstruct:
            why = "with model.reconstruction=0 it" if self.model.name == "aegan" else "it"
            raise SpecError(
                f"data.corruption: {self.model.name} cannot restore images, as {why} compares none with its "
                "reconstruction; leave it out, or train ae, vae, aegan or vaegan"
            )
        return self

    @model_validator(mode="after")
    def _check_balance(self) -> Self:
        if self.data.balance and self.data.normal_class is not None:
            raise SpecError(
                "data.balance: with data.normal_class there is one class alone, and nothing to balance; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _check_compile(self) -> Self:
        culprit = self.model.differentiates_twice
        if self.training.compile and culprit is not None:
            raise SpecError(f"torch.compile cannot differentiate twice, which {culprit} needs: leave out --compile")
        return self

    @model_validator(mode="after")
    def _check_batch_size(self) -> Self:
        size, together = self.training.batch_size, self.model.images_judged_together
        if size % together:
            raise SpecError(
                f"training.batch_size: {size} is no multiple of the {together} images that {self.model.name} judges "
                f"together; type {max(size // together, 1) * together}"
            )
        return self


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
                "the run folder; type asha, median or fifo"
            )
        return name


class TuneSpec(TrainSpec, frozen=True, extra="forbid"):
    """A search: the training that all trials share, and what varies between them."""

    search: SearchOptions

    @classmethod
    def search_over(
        cls, space: str | None, model: str, settings: Settings, *, vary: Mapping[str, str] | None = None
    ) -> Self:
        """The spec of a search over the space of that name or file, the model's own, or what `vary` says.

        `vary` holds values or a range by dotted path (raygen.space.of_values). Raises SpaceError and SpecError.
        """
        models.check(model)
        if space and vary:
            raise SpecError("--space and --vary both say what varies; type one of them")
        chosen = _varied(model, settings, vary) if vary else space_files.read(space or model)
        _check_purpose(chosen, model)
        for path in settings.keys() & chosen.parameters.keys():
            raise SpecError(
                f"{path} is what the space {chosen.origin!r} varies; leave it out, or edit a copy of the space"
            )
        searched: dict[str, Any] = {
            "evaluation.objective": chosen.objective,
            "search.space": chosen.model_dump(mode="json"),
        }
        if settings.get("search.sampler") == "grid":
            # Whoever types a grid wants all of it, to the end.
            searched |= {"search.trials": chosen.grid_size(), "search.scheduler": "fifo"}
        return cls.create(model, {**searched, **settings})

    def batch_sizes(self) -> tuple[int, int]:
        varied = self.search.space.parameters.get("training.batch_size")
        sizes = [int(size) for size in varied.edges()] if varied else [self.training.batch_size]
        return min(sizes), max(sizes)

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.search.sampler == "grid" and self.search.trials != (size := self.search.space.grid_size()):
            raise SpecError(f"search.trials: a grid runs all of its {size} configurations; leave out --trials")
        return self

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        parameters = self.search.space.parameters
        for key in parameters:
            self._check_key(key)
            self._check_edges(key)
        # A value may be possible by itself but not with another's: a pack of images and a batch size, say.
        for pair in itertools.combinations(parameters, 2):
            self._check_edges(*pair)
        return self

    def _check_edges(self, *keys: str) -> None:
        space = self.search.space
        for values in itertools.product(*(space.parameters[key].edges() for key in keys)):
            try:
                self.trial_spec(dict(zip(keys, values, strict=True)))
            except SpecError as error:
                raise SpaceError(f"{space.origin}: {' with '.join(keys)}: {error}") from error

    def _check_key(self, key: str) -> None:
        searchable = [
            path
            for path in TrainSpec.paths(self.model.name, type(self.optimizer))
            if path.startswith(("model.", "optimizer.", "training.")) and path != "model.name"
        ]
        if key not in searchable:
            if reason := _other_optimizer_s(key, type(self.optimizer)):
                raise SpaceError(f"{self.search.space.origin}: {reason}")
            nearest = _nearest(key, searchable)
            hint = f"did you mean {nearest!r}?" if nearest else f"it may be one of {', '.join(searchable)}"
            raise SpaceError(f"{self.search.space.origin}: {key}: a search cannot vary this; {hint}")

    def trial_spec(self, parameters: Settings) -> TrainSpec:
        """The training of one trial: the shared spec with the trial's values set."""
        shared = self.model_dump(mode="json", exclude={"search"})
        return TrainSpec._validated(_merged_spec(shared, _nested(parameters)))


def _check_settings(settings: Settings) -> None:
    """Raise SpecError for what nobody can set: the version, digests of weights, and fields that are no more."""
    if "version" in settings:
        raise SpecError("version: it says which Raygen made the spec, and is not set; leave it out")
    for path in settings:
        if path.partition(".")[0] == "warm_start":
            raise SpecError(f"{path}: it follows from `raygen train gan --from RUN`, and is not set; leave it out")
    for path in settings.keys() & versions.FORMER.keys():
        raise SpecError(f"there is no field {path!r} any more; {versions.FORMER[path]}")


def _check_metric(name: str, model: str) -> None:
    """Raise SpecError where there is no such metric, or none that `model` can be judged by."""
    family = models.find(model)
    metric = metrics.find(name)
    if metric.compute is None:
        raise SpecError(
            f"{name} needs labels, a classifier or the training images, so no training can be judged by it: "
            "ask `raygen evaluate`"
        )
    if not issubclass(family, metric.requires):
        every = (metrics.find(known) for known in metrics.names())
        fitting = [each.name for each in every if each.compute and issubclass(family, each.requires)]
        raise SpecError(f"{model} cannot be judged by {name}; it can by {', '.join(fitting)}")


def _varied(model: str, settings: Settings, vary: Mapping[str, str]) -> Space:
    """The space of what is named, for the objective that is set or the model's own."""
    own = models.find(model).recipe["evaluation"]["objective"]
    objective = str(settings.get("evaluation.objective", own))
    _check_metric(objective, model)
    return space_files.of_values(model, objective, metrics.find(objective).direction, vary)


def _check_purpose(space: Space, model: str) -> None:
    """Raise SpaceError where a space is for another model, or its objective is none."""
    if space.model != model:
        raise SpaceError(f"{space.origin}: model: this space is for {space.model!r}, not {model!r}")
    try:
        _check_metric(space.objective, model)
    except SpecError as error:
        raise SpaceError(f"{space.origin}: objective: {error}") from error
    best = metrics.find(space.objective).direction
    if space.direction != best:
        raise SpaceError(f"{space.origin}: direction: {space.objective} is better at its {best}: {best!r}")


def read_file(path: Path) -> tuple[str, dict[str, Any]]:
    """The model that a TOML file names in `model.name`, and its other settings; raises SpecError naming the file."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read as a spec: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from error
    settings = dict(_flat(document))
    model = settings.pop("model.name", None)
    if not isinstance(model, str):
        raise SpecError(f'{path}: model.name: name a model, such as name = "vae" under [model]')
    return model, settings


def resources(settings: Settings) -> Resources:
    """The resources in a job's settings, readable before the rest of its spec; raises SpecError."""
    values = _nested({path: value for path, value in settings.items() if path.startswith("resources.")})
    try:
        return Resources.model_validate(values.get("resources", {}))
    except ValidationError as error:
        raise SpecError(_explained(error, list(Resources.model_fields), AdamOptions)) from error


def _nested(settings: Settings) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for path, value in settings.items():
        *parents, leaf = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise SpecError(f"{path}: {parent} is set as a whole and in part")
        if isinstance(branch.get(leaf), dict):
            raise SpecError(f"{path}: it is set as a whole and in part")
        branch[leaf] = value
    return tree


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of {"a": {"b": 1}} by dotted path, ("a.b", 1)."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in the place of its own."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _merged_spec(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over`; if that names an optimizer, less what this one does not have."""
    optimizer, chosen = base.get("optimizer"), over.get("optimizer")
    if isinstance(optimizer, Mapping) and isinstance(chosen, Mapping) and "name" in chosen:
        fields = options_of(chosen).model_fields
        base = {**base, "optimizer": {name: value for name, value in optimizer.items() if name in fields}}
    return _merged(base, over)


def _paths(spec: type[BaseModel], chosen: Mapping[Any, type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """The paths of a spec in which options of the types that `chosen` has are of the types that it says."""
    for name, field in spec.model_fields.items():
        kind = chosen.get(field.annotation, field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Space:
            yield from _paths(kind, chosen, f"{prefix}{name}.")
        else:
            yield prefix + name


def _nearest(path: str, known: list[str]) -> str | None:
    """The known path most like `path`: by its last part where that names one field alone, else by its letters."""
    leaf = path.rpartition(".")[2]
    same_leaf = [candidate for candidate in known if candidate.rpartition(".")[2] == leaf]
    if len(same_leaf) == 1:
        return same_leaf[0]
    # Nobody who types another word means `optimizer.name`, though it is like `optimizer.learning_rate`.
    matches = difflib.get_close_matches(path, [path for path in known if not path.endswith(".name")], n=1)
    return matches[0] if matches else None


def _other_optimizer_s(path: str, optimizer: type[OptimizerOptions]) -> str | None:
    """What to say of a field that `optimizer` does not have but another does; none if `path` is no such field."""
    part, _, field = path.partition(".")
    if part != "optimizer" or not any(field in other.model_fields for other in OPTIMIZERS.values()):
        return None
    has = ", ".join(own for own in optimizer.model_fields if own != "name")
    return f"{path}: {optimizer.model_fields['name'].default} has no {field}; it has {has}"


def _explained(error: ValidationError, known: list[str], optimizer: type[OptimizerOptions]) -> str:
    """The first fault of a spec in one line: which field, what is wrong, what is valid."""
    first, *others = error.errors(include_url=False)
    path = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        if reason := _other_optimizer_s(path, optimizer):
            return reason + more
        nearest = _nearest(path, known)
        hint = f"did you mean {nearest!r}?" if nearest else "`--dry-run` prints every field"
        return f"there is no field {path!r}; {hint}{more}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{path}: {reason[0].lower()}{reason[1:]}, got {first['input']!r}{more}"
