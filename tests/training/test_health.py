"""Trainings that go wrong are stopped by name, those that only learn slowly are not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from raygen.data import Dataset
from raygen.errors import NonFiniteLossError, UnhealthyError
from raygen.models._base import Adversarial, ImageShape
from raygen.spec import TrainSpec
from raygen.training import checkpoint, health
from raygen.training.batches import Batches
from raygen.training.checkpoint import Progress
from raygen.training.distributed import ALONE, CPU
from raygen.training.loop import fit
from raygen.training.step import build_model
from tests.batches import batches_from
from tests.checkpoints import saved_best

SHAPE = ImageShape(1, 8, 8)
COLLAPSING = {
    "training.epochs": 60,
    "training.batch_size": 32,
    "optimizer.lr": 2e-3,
    "model.discriminator_lr_scale": 1e-3,
    "model.width": 8,
}
"""A discriminator that hardly learns: the generator finds the one image that it takes for real."""
WITHOUT_PRIOR = {
    "model.adversarial": "reconstructions",
    "model.latent_judge": False,
    "evaluation.objective": "val_mse",
}
"""An aegan whose samples nothing looks at."""


def examined(model: str, epochs: list[Mapping[str, float]], *, improved: bool = False, **settings: Any) -> list[str]:
    """The ailment found after each of these epochs, of 100 steps each; an empty one where there is none."""
    spec = TrainSpec.create(model, {f"health.{name}": value for name, value in settings.items()})
    built, progress, found = build_model(spec, SHAPE, CPU), Progress(), []
    for values in epochs:
        progress.step += 100
        error = health.examine(built, spec.health, progress, values, improved=improved)
        found.append(error.ailment if error else "")
    return found


def gan_epoch(coverage: float = 0.5, loss: float = 1.0) -> Mapping[str, float]:
    return {"val_coverage": coverage, "discriminator_loss": loss}


# Epochs made by hand


def test_coverage_below_the_floor_for_long_enough_is_mode_collapse() -> None:
    found = examined("gan", [gan_epoch(0.01)] * 7, grace_steps=300, patience_epochs=4)
    assert found == [""] * 5 + ["mode collapse"] * 2  # grace ends with epoch 3, which is the first that counts


def test_a_healthy_epoch_between_begins_the_count_again() -> None:
    bad, good = gan_epoch(0.01), gan_epoch(0.3)
    found = examined("gan", [bad, bad, good, bad, bad, bad], grace_steps=0, patience_epochs=3)
    assert found == [""] * 5 + ["mode collapse"]


def test_a_generator_that_still_improves_is_not_stopped() -> None:
    assert examined("gan", [gan_epoch(0.0, loss=0.33)] * 20, improved=True) == [""] * 20


def test_a_discriminator_without_loss_is_saturated() -> None:
    """The lowest loss of 0.325 is the entropy of the smoothed label 0.9; a guess costs 2 ln 2."""
    assert examined("gan", [gan_epoch(loss=0.33)] * 14)[-1] == "discriminator saturation"
    assert examined("gan", [gan_epoch(loss=0.36)] * 14)[-1] == ""


def test_no_active_unit_is_posterior_collapse_though_the_objective_improves() -> None:
    assert examined("vae", [{"val_active_units": 0.0}] * 14, improved=True)[-1] == "posterior collapse"
    assert examined("vae", [{"val_active_units": 1.0}] * 14)[-1] == ""


@pytest.mark.parametrize("off", [{"enabled": False}, {"min_coverage": 0, "min_discriminator_loss": 0}])
def test_what_is_turned_off_stops_nothing(off: dict[str, Any]) -> None:
    assert examined("gan", [gan_epoch(0.0, loss=0.33)] * 20, **off) == [""] * 20


@pytest.mark.parametrize(
    ("model", "needed"),
    [
        ("ae", []),
        ("vae", ["val_active_units"]),
        ("gan", ["val_coverage"]),
        ("vaegan", ["val_coverage", "val_active_units"]),
        ("aegan", ["val_coverage"]),
        ("aegan-without-prior", []),
    ],
)
def test_only_what_suits_a_model_is_computed(model: str, needed: list[str]) -> None:
    settings = WITHOUT_PRIOR if model.endswith("without-prior") else {}
    spec = TrainSpec.create(model.partition("-")[0], settings)
    built = build_model(spec, SHAPE, CPU)
    assert health.needed_metrics(built, spec) == needed
    assert health.needed_metrics(built, spec.with_settings({"health.enabled": False})) == []


@pytest.mark.parametrize(
    ("model", "settings"),
    [("gan", {"model.loss": loss}) for loss in ("non-saturating", "lsgan", "hinge")]
    + [("aegan", {"model.judges": judges}) for judges in ("images", "pairs")]
    + [("aegan", {"model.adversarial": shown}) for shown in ("reconstructions", "both")]
    + [("aegan", {"model.adversarial": "both", "model.latent_judge": False, "model.loss": "minimax"})]
    + [("vaegan", {})],
)
def test_a_discriminator_that_guesses_has_the_loss_of_a_guess(
    model: str, settings: dict[str, Any], digits: Dataset
) -> None:
    spec = TrainSpec.create(model, settings)
    built = build_model(spec, SHAPE, CPU)
    assert isinstance(built, Adversarial)
    bounds = built.discriminator_loss_range()
    assert bounds is not None
    [phase] = [phase for phase in built.phases() if phase.name == "discriminator"]
    guess = spec.model.model_dump()["real_label"] / 2 if settings.get("model.loss") == "lsgan" else 0.0
    with torch.no_grad():
        for parameter in phase.params:
            parameter.zero_()
        phase.params[-1].fill_(guess)  # the bias of the last layer: the logit of every image
    loss, _ = phase.loss(next(batches_from(Batches(digits.train.images, spec, ALONE), 0)))
    assert loss.item() == pytest.approx(bounds[1], rel=1e-4)
    assert 0 <= bounds[0] < bounds[1]


# Trained models


def until_stopped(spec: TrainSpec, digits: Dataset, path: Path, *, close_after: int | None = None) -> tuple[int, str]:
    """Train; returns the last epoch and what the training was stopped for, if anything."""
    last, epochs = 0, fit(spec, digits, path)
    try:
        for epoch in epochs:
            last = epoch.epoch
            if last == close_after:
                epochs.close()
                return last, ""
    except UnhealthyError as error:
        return last, error.ailment
    return last, ""


def test_a_collapsing_gan_is_stopped_before_half_its_epochs_and_keeps_its_best(digits: Dataset, path: Path) -> None:
    spec = TrainSpec.create("gan", COLLAPSING)
    last, ailment = until_stopped(spec, digits, path)
    assert ailment == "mode collapse"
    assert last < 30
    record = saved_best(path)
    assert record["epoch"] <= last - spec.health.patience_epochs
    assert checkpoint.read_weights(path, prefix=checkpoint.BEST)


def test_a_healthy_gan_is_not_stopped(digits: Dataset, path: Path) -> None:
    healthy = {**COLLAPSING, "training.epochs": 20, "model.discriminator_lr_scale": 1.0}
    assert until_stopped(TrainSpec.create("gan", healthy), digits, path) == (20, "")


@pytest.mark.parametrize(("beta", "ended"), [(1.0, (30, "")), (100.0, (23, "posterior collapse"))])
def test_a_vae_whose_latents_say_nothing_is_stopped(
    beta: float, ended: tuple[int, str], digits: Dataset, path: Path
) -> None:
    """22 steps make an epoch of digits: the 300 of grace end with epoch 14, the first of ten that count."""
    spec = TrainSpec.create("vae", {"model.beta": beta, "training.batch_size": 64, "training.epochs": 30})
    assert until_stopped(spec, digits, path) == ended


@pytest.mark.parametrize("close_after", [11, 18])
def test_a_resumed_training_is_stopped_after_the_same_epoch(close_after: int, digits: Dataset, path: Path) -> None:
    collapsed = {"model.beta": 100, "training.batch_size": 64, "training.epochs": 30}
    spec = TrainSpec.create("vae", collapsed)
    assert until_stopped(spec, digits, path, close_after=close_after) == (close_after, "")
    assert until_stopped(spec, digits, path) == (23, "posterior collapse")


def test_the_best_epoch_before_a_loss_that_is_not_finite_is_kept(digits: Dataset, path: Path) -> None:
    """16 steps make an epoch; the generator takes its first step, which is far too long, in the second one."""
    hot = {"optimizer.lr": 1e30, "model.discriminator_lr_scale": 1e-33, "model.discriminator_steps": 20}
    spec = TrainSpec.create("gan", {**hot, "model.arch": "mlp", "training.batch_size": 100})
    with pytest.raises(NonFiniteLossError):
        list(fit(spec, digits, path))
    record = saved_best(path)
    assert record["epoch"] == 1
