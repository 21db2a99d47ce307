"""The spec of a search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from raygen import metrics, models
from raygen import space as space_files
from raygen.errors import SpaceError, SpecError
from raygen.space import Space
from raygen.spec.options import SearchOptions
from raygen.spec.settings import Settings, merged_spec, nearest_path, nested, other_optimizer_s
from raygen.spec.train import TrainSpec, check_metric


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
            if reason := other_optimizer_s(key, type(self.optimizer)):
                raise SpaceError(f"{self.search.space.origin}: {reason}")
            nearest = nearest_path(key, searchable)
            hint = f"did you mean {nearest!r}?" if nearest else f"it may be one of {', '.join(searchable)}"
            raise SpaceError(f"{self.search.space.origin}: {key}: a search cannot vary this; {hint}")

    def trial_spec(self, parameters: Settings) -> TrainSpec:
        """The training of one trial: the shared spec with the trial's values set."""
        shared = self.model_dump(mode="json", exclude={"search"})
        return TrainSpec._validated(merged_spec(shared, nested(parameters)))


def _varied(model: str, settings: Settings, vary: Mapping[str, str]) -> Space:
    """The space of what is named, for the objective that is set or the model's own."""
    own = models.find(model).recipe["evaluation"]["objective"]
    objective = str(settings.get("evaluation.objective", own))
    check_metric(objective, model)
    return space_files.of_values(model, objective, metrics.find(objective).direction, vary)


def _check_purpose(space: Space, model: str) -> None:
    """Raise SpaceError if a space is for another model, or has an objective that the model cannot be judged by."""
    if space.model != model:
        raise SpaceError(f"{space.origin}: model: this space is for {space.model!r}, not {model!r}")
    try:
        check_metric(space.objective, model)
    except SpecError as error:
        raise SpaceError(f"{space.origin}: objective: {error}") from error
    best = metrics.find(space.objective).direction
    if space.direction != best:
        raise SpaceError(f"{space.origin}: direction: {space.objective} is better at its {best}: {best!r}")
