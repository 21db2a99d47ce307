"""What the record itself reads of the plain JSON that others made: specs, and facts about the best models.

A spec is not validated whole, which would take a fifth of a second for a search; whoever trains does that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from raygen import metrics


class _Part(BaseModel):
    """Some fields of a JSON object, which has others beside them."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Model(_Part):
    name: str


class _Data(_Part):
    source: str


class _Training(_Part):
    epochs: int = Field(ge=1)


class _Evaluation(_Part):
    pictures: str


class _Search(_Part):
    trials: int = Field(ge=1)
    keep_best: int = Field(ge=1)
    replicates: int = Field(0, ge=0)
    defaults_first: bool = False


class _Spec(_Part):
    version: Literal[1, 2, 3, 4]
    seed: int = Field(ge=0)
    model: _Model
    data: _Data
    training: _Training
    evaluation: _Evaluation
    search: _Search = Field(default=_Search(trials=1, keep_best=1))


class _Tested(_Part):
    images: int
    metrics: dict[str, float]


class _Parts(_Part):
    test: int


class _BestModel(_Part):
    trial: int
    configuration: int
    image_shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    data: _Parts
    test: _Tested | None
    can_sample: bool


def first_problem(error: ValidationError) -> str:
    """What is wrong with a document, and where in it, in one line."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return " ".join(f"{f'{where}: ' if where else ''}{first['msg']}".split())


def _checked(model: type[_Part], written: dict[str, Any]) -> dict[str, Any]:
    try:
        model.model_validate(written)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    return written


def _metric(name: str) -> str:
    if name not in metrics.names():
        raise ValueError(f"there is no metric {name!r}")
    return name


SpecJson = Annotated[dict[str, Any], AfterValidator(lambda written: _checked(_Spec, written))]
"""A spec as `model_dump(mode="json")` makes it."""

BestModelJson = Annotated[dict[str, Any], AfterValidator(lambda written: _checked(_BestModel, written))]
"""What is known of one of the best models, as `raygen.collection` writes it."""

MetricName = Annotated[str, AfterValidator(_metric)]
"""The name of a metric that there is."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of steps, epochs or images, or of one of them."""
