"""What a model was judged to be, in a file: no value without its circumstances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from raygen import files
from raygen.data import Split
from raygen.metrics import Baseline, Direction, HeldOut

CARD = "evaluation.json"


class Value(BaseModel, frozen=True, extra="forbid"):
    """One metric's value on so many `images`; null if it is not finite.

    Of a metric that compares samples with images, `samples` were drawn from `prior` and compared with `images` of the
    part `reference`, over `network` if it compares features; these are null if it compares none. Such a metric's
    `real_against_real` is its value for `real_samples` other real images in the place of samples: what a perfect model
    would reach. `baseline` is what a simpler method of the model's size reaches, if one is fitted. `device` is the
    name of the GPU that the model ran on, or "CPU"; `precision` is that of its numbers, and `tf32` says whether a GPU
    might have multiplied them with less. On older cards, all of them of CPUs, the three are null.
    """

    value: float | None
    direction: Direction
    split: HeldOut
    images: int
    seed: int
    reference: Split | None = None
    samples: int | None = None
    prior: str | None = None
    network: str | None = None
    network_facts: dict[str, Any] | None = None
    real_against_real: float | None = None
    real_samples: int | None = None
    baseline: Baseline | None = None
    details: dict[str, Any]
    device: str | None = None
    precision: Literal["fp32"] | None = None
    tf32: bool | None = None


class EvaluationCard(BaseModel, frozen=True, extra="forbid"):
    """What a model was judged to be: its options, the data set, and each value by its name: val_… or test_….

    `digest` is that of the data set's images; `train_s` are the seconds that the model was trained for, null if its
    run does not tell. `corruption` is what images go through before a model that restores them encodes them; null if
    they are encoded as they are. `left_out` has the reason for each metric that suits the model and was left out
    nevertheless.
    """

    model: dict[str, Any]
    data: str
    digest: str
    train_s: float | None
    corruption: str | None = None
    values: dict[str, Value]
    left_out: dict[str, str] = {}

    def with_earlier(self, earlier: bytes | None) -> EvaluationCard:
        """The card with an earlier one's values on the other part, if it is of this model and these images."""
        splits = {value.split for value in self.values.values()}
        known = self._values_of(earlier) if earlier is not None else {}
        kept = {name: value for name, value in known.items() if value.split not in splits}
        return self.model_copy(update={"values": {**kept, **self.values}})

    def as_bytes(self) -> bytes:
        """The card as a file."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    def write(self, folder: Path) -> Path:
        """Write the card into `folder` as evaluation.json, whole or not at all; returns its path, raises RunError.

        Values on the other held-out part that an earlier card of this model and these images has stay on it.
        """
        path = folder / CARD
        whole = self.with_earlier(path.read_bytes() if path.is_file() else None)
        with files.whole(path) as partial:
            partial.write_bytes(whole.as_bytes())
        return path

    def _values_of(self, earlier: bytes) -> Mapping[str, Value]:
        """The values of another card, if it is one of this model and these images."""
        try:
            card = EvaluationCard.model_validate_json(earlier)
        except ValidationError:
            return {}
        ours, theirs = ((each.model, each.digest, each.corruption) for each in (self, card))
        return card.values if ours == theirs else {}
