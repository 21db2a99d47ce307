"""Steps that are recorded and replayed are the steps themselves; tests/gpu finds it of real graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raygen.data import Dataset
from raygen.models._base import Batch, HeldNoise, ImageShape, Noise
from raygen.models.gan import GenerativeAdversarialNetwork
from raygen.spec import TrainSpec
from raygen.training import checkpoint, way
from raygen.training.batches import Batches
from raygen.training.distributed import ALONE, CPU
from raygen.training.loop import fit
from raygen.training.recorded import PlainSteps, StepsInPlace
from raygen.training.step import Training, build_model
from raygen.training.way import AS_THEY_ARE, Way
from tests.checkpoints import differing
from tests.training.graphs import use

RECORDS = Way(records=True, compiles=False, words="")
STEPS = 14
SMALL = {"model.hidden": [16], "model.width": 8, "model.latent_dim": 4, "training.batch_size": 12}
CASES: dict[str, dict[str, Any]] = {
    "ae": {"data.corruption": "mask", "optimizer.schedule": "cosine"},
    "vae": {"data.augment": ["flip", "shift", "crop"], "optimizer.warmup_fraction": 0.5},
    "gan": {"model.r1": 1.0, "model.r1_every": 3, "model.spectral_norm": True, "model.discriminator_lr_scale": 2.0},
    "gan-wgan": {"model.loss": "wgan-gp", "model.discriminator_steps": 2, "model.pack": 2},
    "gan-sgd": {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "training.ema_half_life_images": 100},
    "aegan": {"data.corruption": "noise", "optimizer.clip_norm": 0.5},
    "vaegan": {"training.precision": "bf16", "training.channels_last": True},
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_recorded_is_the_training(name: str, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the learning rate, which is a float32 there."""
    graphs = use(monkeypatch)
    spec = TrainSpec.create(name.partition("-")[0], {**SMALL, **CASES[name]})
    plain, held = (trained(spec, digits, how) for how in (AS_THEY_ARE, RECORDS))
    assert len(graphs) == 1 + len({step.phase for step in plain[1]}), "one for the batch, and one for each phase"
    assert all(graph.replays > 1 for graph in graphs)
    assert [(step.phase, step.step, list(step.values)) for step in plain[1]] == [
        (step.phase, step.step, list(step.values)) for step in held[1]
    ]
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if "training.precision" in CASES[name] else {"rtol": 1e-4, "atol": 1e-6}
    for ours, theirs in zip(plain[1], held[1], strict=True):
        torch.testing.assert_close(dict(ours.values), dict(theirs.values), **tolerance)
    torch.testing.assert_close(plain[0], held[0], **tolerance)


def test_what_cannot_be_recorded_runs_as_it_is(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase that asks the device, as one of a person's own model may; the others are recorded."""
    spec = TrainSpec.create("gan", {**SMALL, "model.r1": 1.0, "model.r1_every": 3})
    graphs = use(monkeypatch)
    monkeypatch.setattr(GenerativeAdversarialNetwork, "_r1_loss", asking(GenerativeAdversarialNetwork._r1_loss))
    told: list[str] = []
    plain, held = trained(spec, digits, AS_THEY_ARE), trained(spec, digits, RECORDS, told.append)
    assert told == ["steps run as they are: they cannot be recorded (_local_scalar_dense cannot be recorded)"]
    assert [graph.replays > 1 for graph in graphs] == [True, True, True, False]
    torch.testing.assert_close(plain[0], held[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vae", "gan", "gan-sgd"])
def test_a_recorded_training_that_was_stopped_goes_on_exactly(
    name: str, digits: Dataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with steps as they are, then records anew, over the moments that the checkpoint holds."""
    use(monkeypatch)
    monkeypatch.setattr(way, "chosen", lambda spec, group, steps: RECORDS)
    settings = {"training.epochs": 2, "training.batch_size": 60, "training.checkpoint_every_s": 0}
    spec = TrainSpec.create(name.partition("-")[0], {**SMALL, **CASES[name], **settings})
    undisturbed, stopped = path.with_name("undisturbed"), path.with_name("stopped")
    list(fit(spec, digits, undisturbed))
    for looks in (2, 4):
        left = itertools.count(1)
        list(fit(spec, digits, stopped, should_stop=lambda left=left, looks=looks: next(left) == looks))
    list(fit(spec, digits, stopped))
    assert differing(checkpoint.read_weights(stopped), checkpoint.read_weights(undisturbed)) == []


def asking(loss: Any) -> Any:
    def asks(model: Any, batch: Batch) -> Any:
        value, metrics = loss(model, batch)
        assert value.item() >= 0
        return value, metrics

    return asks


def refused(words: str) -> None:
    pytest.fail(words)


def trained(
    spec: TrainSpec, digits: Dataset, how: Way, on_refusal: Callable[[str], None] = refused
) -> tuple[dict[str, Tensor], list[Any]]:
    """The weights after some steps, and what each phase came to in them."""
    batches = Batches(digits.train.images, spec, ALONE)
    training = Training(spec, build_model(spec, ImageShape(*digits.shape), CPU), steps=STEPS, group=ALONE, way=how)
    steps = StepsInPlace(training, batches, on_refusal) if how.records else PlainSteps(training, batches)
    told = []
    for step, pixels in zip(range(STEPS), batches.pixels_from(0), strict=False):
        told += steps.run(pixels, step)
    return training.judged.state_dict(), told


@given(
    steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=5), rows=st.tuples(st.integers(0, 3), st.integers(4, 7))
)
def test_noise_in_place_is_the_noise_of_each_step(steps: list[int], rows: tuple[int, int]) -> None:
    generator, part = torch.Generator(), slice(*rows)
    held = HeldNoise(seed=3, batch_size=7, rows=part, generator=generator)
    places: set[tuple[int, int]] = set()
    for step in steps:
        plain = Noise(seed=3, step=step, batch_size=7, rows=part, generator=generator)
        held.begin(step, ["one", "two"])
        for name in ("one", "two"):
            asked = held.asked_by(name)
            numbers = [asked.normal("latents", 2), asked.uniform("latents", 2), asked.normal("latents", 3)]
            expected = [plain.normal("latents", 2), plain.uniform("latents", 2), plain.normal("latents", 3)]
            assert all(map(torch.equal, numbers, expected))
            places |= {(index, tensor.data_ptr()) for index, tensor in enumerate(numbers)}
    assert len(places) == 6, "each stays where it is"


def test_a_part_that_is_not_due_draws_nothing() -> None:
    held = HeldNoise(seed=3, batch_size=2, rows=slice(None), generator=torch.Generator())
    held.begin(0, ["rare"])
    first = held.asked_by("rare").normal("latents", 4).clone()
    held.begin(1, ["often"])
    assert torch.equal(held.asked_by("rare").normal("latents", 4), first)
