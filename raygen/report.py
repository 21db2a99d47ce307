"""A run as it is shown to people: everything that tables, pictures and plain JSON of it are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raygen.record import ranking, summary
from raygen.record.documents import ENDED as ENDED_TRIALS
from raygen.record.documents import Status
from raygen.record.view import TrialRecord, View

__all__ = ["ENDED_TRIALS", "Report", "Status", "TrialRecord"]


@dataclass(frozen=True)
class Report:
    """A run at one look; `address` says where it is, in a few words."""

    view: View
    address: str

    @property
    def name(self) -> str:
        """The run's name."""
        return self.view.name

    @property
    def objective(self) -> str:
        """The metric that trials are judged by."""
        return self.view.objective

    @property
    def direction(self) -> str:
        """Which way the objective is better: min or max."""
        return self.view.direction

    @property
    def spec_json(self) -> Mapping[str, Any]:
        """The spec, as plain JSON."""
        return self.view.spec_json

    @property
    def status(self) -> Status:
        """The state that the run is in."""
        return self.view.status

    @cached_property
    def records(self) -> Sequence[TrialRecord]:
        """What is known of every trial, the better first."""
        return ranking.records(self.view)

    @property
    def number_of_trials(self) -> int:
        """The trials that were asked for, those that run a configuration again among them."""
        return ranking.number_of_trials(self.view)

    @property
    def best(self) -> Sequence[Mapping[str, Any]]:
        """What is known of each of the best models, the very best first."""
        return self.view.best

    @property
    def can_sample(self) -> bool:
        """Whether the best model has a prior to sample from."""
        return self.view.can_sample

    @property
    def packing(self) -> str:
        """How many trials share a GPU and why, if that was measured; else nothing."""
        return self.view.packing.why if self.view.packing else ""

    @property
    def tested(self) -> Mapping[str, Any] | None:
        """What the best came to on all test images; None if nothing was tested."""
        return summary.tested(self.view)

    @property
    def why_untested(self) -> str:
        """Why the best has no value on test images, in a few words."""
        return summary.why_untested(self.view)

    def as_json(self) -> dict[str, Any]:
        """The result in plain JSON."""
        return {**summary.summary(self.view), "address": self.address}
