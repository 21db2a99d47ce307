"""The spec of one training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from raygen import metrics, models, versions
from raygen.data import DataOptions
from raygen.errors import SpecError
from raygen.models._options import ModelOptions
from raygen.optimizer_options import AdamOptions, OptimizerOptions, options_of
from raygen.spec.options import EvaluationOptions, HealthOptions, Resources, TrainingOptions, WarmStart
from raygen.spec.settings import Settings, explained, field_paths, merged_spec, nested

NOT_OF_A_CONFIGURATION: dict[str, Any] = {
    "seed": True,
    "resources": True,
    "training": {"checkpoint_every_s", "images_on"},
    "evaluation": {"pictures"},
    "warm_start": {"source", "digest"},
}
"""Fields that may differ between trainings of one configuration."""


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

    version: Literal[1, 2, 3, 4] = Field(description="of the fields' meaning: that of the Raygen which made the spec")
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
        return cls._validated(nested({"version": versions.VERSION, "model.name": model, **settings}))

    def with_settings(self, settings: Settings) -> Self:
        """This spec with some fields set otherwise; raises SpecError like `create`.

        Another optimizer keeps what it has in common with this one, such as the learning rate.
        """
        _check_settings(settings)
        return self._validated(merged_spec(self.model_dump(mode="json"), nested(settings)))

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
        return [path for path in field_paths(cls, chosen) if path not in ("version", "warm_start")]

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
            raise SpecError(explained(error, cls.paths(model, optimizer), optimizer)) from error

    @model_validator(mode="before")
    @classmethod
    def _start_from_recipe(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("model"), Mapping):
            return merged_spec(models.find(values["model"]["name"]).recipe, versions.read_spec(values))
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
            check_metric(name, self.model.name)
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
        if self.training.compile == "on" and culprit is not None:
            raise SpecError(
                f"torch.compile cannot differentiate twice, which {culprit} needs: leave out --compile on "
                "(auto records steps on a GPU without it)"
            )
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


def _check_settings(settings: Settings) -> None:
    """Raise SpecError for what nobody can set: the version, digests of weights, and fields that are no more."""
    if "version" in settings:
        raise SpecError("version: it says which Raygen made the spec, and is not set; leave it out")
    for path in settings:
        if path.partition(".")[0] == "warm_start":
            raise SpecError(f"{path}: it follows from `raygen train gan --from RUN`, and is not set; leave it out")
    for path in settings.keys() & versions.FORMER.keys():
        raise SpecError(f"there is no field {path!r} any more; {versions.FORMER[path]}")


def check_metric(name: str, model: str) -> None:
    """Raise SpecError if there is no such metric, or `model` cannot be judged by it."""
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
