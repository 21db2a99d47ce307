"""Health: whether a training that still runs has stopped learning, told by name at the end of an epoch.

- mode collapse: samples cover next to none of the validation images (coverage, Naeem et al. 2020, over `random`)
- discriminator saturation: the discriminator's loss has all but reached its lowest value
- posterior collapse: hardly a latent unit is active (Burda et al. 2016)

The first two look the same in a generator that has only begun to learn, so they count only in epochs that bring no
new best value of the objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

import torch

from raygen.errors import Ailment, UnhealthyError
from raygen.models._base import Adversarial, GaussianEncoder, Model
from raygen.spec import HealthOptions, TrainSpec
from raygen.training.checkpoint import Progress
from raygen.training.distributed import Group

AILMENTS: tuple[Ailment, ...] = get_args(Ailment)
COVERAGE, ACTIVE_UNITS = "val_coverage", "val_active_units"


def needed_metrics(model: Model, spec: TrainSpec) -> list[str]:
    """The names of the metrics that the model's health is told by."""
    needed, options = [], spec.health
    has_prior = spec.model.prior_name is not None
    if options.enabled and options.min_coverage > 0 and isinstance(model, Adversarial) and has_prior:
        needed.append(COVERAGE)
    if options.enabled and options.min_active_units > 0 and isinstance(model, GaussianEncoder):
        needed.append(ACTIVE_UNITS)
    return needed


def examine(
    model: Model, options: HealthOptions, progress: Progress, values: Mapping[str, float], *, improved: bool
) -> UnhealthyError | None:
    """What to stop the training for after an epoch with these `values`, if anything; `progress` keeps the count.

    `improved` says that the epoch brought a new best value of the objective.
    """
    after_grace = options.enabled and progress.step >= options.grace_steps
    signs = dict(_signs(model, options, values, improved=improved)) if after_grace else {}
    progress.ailing_epochs = {ailment: progress.ailing_epochs.get(ailment, 0) + 1 for ailment in signs}
    for ailment, sign in signs.items():
        epochs = progress.ailing_epochs[ailment]
        if epochs >= options.patience_epochs:
            return UnhealthyError(ailment, f"{sign} after {epochs} such epochs")
    return None


def told_to_all(found: UnhealthyError | None, group: Group) -> UnhealthyError | None:
    """What rank 0 found, on every rank, so that all end the training together."""
    code = AILMENTS.index(found.ailment) + 1 if found is not None else 0
    total = torch.tensor([float(code)], device=group.device)
    group.sum([total])
    if total.item() == 0 or found is not None:
        return found
    return UnhealthyError(AILMENTS[int(total.item()) - 1], "found by rank 0")


def _signs(
    model: Model, options: HealthOptions, values: Mapping[str, float], *, improved: bool
) -> Iterator[tuple[Ailment, str]]:
    coverage, active_units = values.get(COVERAGE), values.get(ACTIVE_UNITS)
    if isinstance(model, Adversarial) and not improved:
        if coverage is not None and coverage < options.min_coverage:
            yield "mode collapse", f"{COVERAGE} is {coverage:.3g}, below {options.min_coverage:g},"
        loss = _relative_loss(model, values)
        if loss is not None and loss < options.min_discriminator_loss:
            limit = f"{options.min_discriminator_loss:.2g}"
            yield "discriminator saturation", f"its loss is {loss:.2g} of a guess's, below {limit},"
    if active_units is not None and active_units < options.min_active_units:
        yield "posterior collapse", f"{active_units:g} latent units are active, fewer than {options.min_active_units},"


def _relative_loss(model: Adversarial, values: Mapping[str, float]) -> float | None:
    """The discriminator's mean loss of an epoch, from 0 (its lowest) to 1 (a guess); none where it has no bounds."""
    bounds = model.discriminator_loss_range()
    if bounds is None:
        return None
    lowest, guess = bounds
    return (values["discriminator_loss"] - lowest) / (guess - lowest)
