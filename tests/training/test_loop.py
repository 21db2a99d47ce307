from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import Tensor, nn

from raygen import data, metrics
from raygen.data import Dataset
from raygen.errors import NonFiniteLossError, NonFiniteObjectiveError, SpecError
from raygen.models._base import Batch, ImageShape, Metrics, Model, Noise, Phase
from raygen.models._options import ModelOptions
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.batches import Batches
from raygen.training.distributed import ALONE, CPU, Group
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.loop import Epoch, Pace, fit
from raygen.training.step import Training, build_model
from tests.batches import batches_from
from tests.checkpoints import saved_best

SMALL = {"model.arch": "mlp", "model.hidden": [32], "model.latent_dim": 8, "training.batch_size": 100}
SHAPE = ImageShape(1, 8, 8)


def small(model: str, **settings: Any) -> TrainSpec:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return TrainSpec.create(model, {**SMALL, **named})


def weights(path: Path) -> dict[str, Tensor]:
    return checkpoint.read_weights(path, prefix="model.")


def numbered(count: int) -> Tensor:
    """Images of which each is filled with its own number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, *SHAPE)


def numbers(batch: Batch) -> list[int]:
    return (batch.images[:, 0, 0, 0] * 255).round().int().tolist()


def only_batch(training: Training, step: int = 0) -> Batch:
    noise = Noise(seed=0, step=step, batch_size=100, rows=slice(None), generator=torch.Generator())
    return Batch(images=torch.rand(100, *SHAPE, generator=torch.Generator().manual_seed(step)), noise=noise)


def started(spec: TrainSpec, *, steps: int = 100) -> Training:
    return Training(spec, build_model(spec, SHAPE, CPU), steps=steps, group=ALONE)


# The whole of it


def test_it_does_what_plain_torch_would(digits: Dataset, path: Path) -> None:
    spec = small("ae", training__epochs=2, optimizer__lr=3e-3, optimizer__beta1=0.8)
    epochs = list(fit(spec, digits, path))

    model: Any = build_model(spec, SHAPE, CPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.8, 0.999))
    batches = Batches(digits.train.images, spec, ALONE)
    for epoch in epochs:
        losses = []
        for batch in batches_from(batches, (epoch.epoch - 1) * batches.per_epoch):
            loss = (model.decode(model.encode(batch.images)) - batch.images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert epoch.metrics["reconstruction_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    for name, tensor in weights(path).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "reported"),
    [
        ("ae", {"reconstruction_loss", "val_mse"}),
        ("vae", {"vae_loss", "kl", "reconstruction", "val_elbo", "val_mse", "val_active_units"}),
        (
            "gan",
            {"discriminator_loss", "generator_loss", "real_logit", "fake_logit", "val_frechet", "val_coverage"},
        ),
        (
            "aegan",
            {"discriminator_loss", "autoencoder_loss", "encoded_logit", "generated_logit", "reconstruction"}
            | {"val_frechet", "val_mse", "val_coverage"},
        ),
        (
            "vaegan",
            {"discriminator_loss", "decoder_loss", "encoder_loss", "real_logit", "fake_logit", "kl"}
            | {"feature_error", "val_frechet", "val_mse", "val_coverage", "val_active_units"},
        ),
    ],
)
def test_every_epoch_is_reported(model: str, reported: set[str], digits: Dataset, path: Path) -> None:
    epochs = list(fit(small(model, training__epochs=3), digits, path))
    assert [(epoch.epoch, epoch.step) for epoch in epochs] == [(1, 14), (2, 28), (3, 42)]
    assert all(set(epoch.metrics) == reported for epoch in epochs)
    assert 0 < epochs[0].train_s < epochs[1].train_s < epochs[2].train_s


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_the_best_epoch_is_kept_with_the_weights_that_were_judged(model: str, digits: Dataset, path: Path) -> None:
    """At a rate where training wavers, so that the last epoch is not the best."""
    spec = small(model, training__epochs=12, optimizer__lr=0.1)
    epochs = list(fit(spec, digits, path))
    objective = metrics.find(spec.evaluation.objective)
    best: Epoch | None = None
    for epoch in epochs:
        better = best is None or objective.is_better(epoch.metrics[objective.name], than=best.metrics[objective.name])
        assert epoch.is_best == better
        best = epoch if better else best
    assert best is not None
    assert best.epoch < 12

    judged = build_model(spec, SHAPE, CPU)
    judged.load_state_dict(checkpoint.read_weights(path, prefix=checkpoint.BEST))
    values = evaluate(judged, held_out_images(digits.validation.images, spec.evaluation, CPU), spec.evaluation)
    assert values == pytest.approx({name: best.metrics[name] for name in values}, rel=1e-6)


def test_training_learns(digits: Dataset, path: Path) -> None:
    epochs = list(fit(small("vae", training__epochs=8, optimizer__lr=5e-3), digits, path))
    assert epochs[-1].metrics["val_elbo"] > epochs[0].metrics["val_elbo"] + 5
    assert epochs[-1].metrics["val_mse"] < 0.7 * epochs[0].metrics["val_mse"]


def test_only_so_many_held_out_images_are_judged(digits: Dataset) -> None:
    options = small("ae", evaluation__images=50).evaluation
    images = held_out_images(digits.validation.images, options, CPU)
    assert torch.equal(images, digits.validation.images[:50].float() / 255)
    assert len(held_out_images(digits.validation.images, small("ae").evaluation, CPU)) == 180


# Watching and stopping


def test_pace_tells_how_far_it_is(digits: Dataset, path: Path) -> None:
    seen: list[Pace] = []
    for _ in fit(small("ae", training__epochs=2, training__batch_size=30), digits, path, on_pace=seen.append):
        pass
    assert [pace.step for pace in seen] == [1, 2, 20, 40, 47, 60, 80, 94]
    assert [pace.epoch for pace in seen] == [1, 1, 1, 1, 1, 2, 2, 2]
    assert all(pace.steps == 94 and pace.images_per_s > 0 for pace in seen)


def test_a_stop_is_heeded_at_the_next_sync_and_leaves_a_checkpoint(digits: Dataset, path: Path) -> None:
    spec = small("ae", training__epochs=2, training__batch_size=30)
    looks = iter([False, False, False, True])
    assert list(fit(spec, digits, path, should_stop=lambda: next(looks))) == []
    assert checkpoint.restore(path, started(spec).trained).step == 40


def test_a_stop_at_an_epoch_s_last_step_leaves_its_judgement_to_who_goes_on(digits: Dataset, path: Path) -> None:
    """14 steps make an epoch here, so its end is the third sync."""
    spec = small("ae", training__epochs=3)
    looks = iter([False, False, True])
    assert list(fit(spec, digits, path, should_stop=lambda: next(looks))) == []
    assert checkpoint.restore(path, started(spec).trained).step == 14
    resumed, undisturbed = (list(fit(spec, digits, each)) for each in (path, path.with_name("undisturbed")))
    assert [epoch.metrics for epoch in resumed] == [epoch.metrics for epoch in undisturbed]


@pytest.mark.parametrize(("sync", "step"), [(4, 40), (5, 47), (7, 80)])
def test_a_checkpoint_asked_for_is_written_at_that_sync_and_is_one_to_go_on_from(
    sync: int, step: int, digits: Dataset, path: Path
) -> None:
    """47 steps make an epoch, which the fifth sync ends: its checkpoint must wait until the epoch has been judged."""
    spec = small("ae", training__epochs=2, training__batch_size=30, training__checkpoint_every_s=3600)
    syncs = iter(range(1, 100))
    written: list[int] = []
    kept = path.with_name("kept")

    def look(pace: Pace) -> None:
        """What is there at a sync was written at an earlier one."""
        if path.exists():
            shutil.copy(path, kept)
            written.append(checkpoint.restore(kept, started(spec).trained).step)

    epochs = fit(spec, digits, path, on_pace=look, should_save=lambda: next(syncs) == sync)
    expected = {epoch.epoch: epoch.metrics for epoch in epochs}
    assert written == [step] * (8 - sync)
    resumed = {epoch.epoch: epoch.metrics for epoch in fit(spec, digits, kept)}
    assert 2 in resumed
    assert resumed.items() <= expected.items()
    for name, tensor in weights(path).items():
        assert torch.equal(tensor, weights(kept)[name])


# What cannot be trained


@pytest.mark.parametrize(("model", "phase", "lr"), [("ae", "reconstruction", 1e30), ("vae", "vae", 1e10)])
def test_a_loss_that_is_not_finite_stops_the_run(
    model: str, phase: str, lr: float, digits: Dataset, path: Path
) -> None:
    with pytest.raises(NonFiniteLossError) as caught:
        list(fit(small(model, optimizer__lr=lr), digits, path))
    assert f"the {phase} loss is not finite at step 1;" in str(caught.value)
    assert "--lr" in str(caught.value)
    assert not path.exists()


def test_the_phase_at_fault_is_named(digits: Dataset, path: Path) -> None:
    """The discriminator's first loss is finite; its step then makes the generator's infinite."""
    with pytest.raises(NonFiniteLossError, match="the generator loss is not finite at step 0"):
        list(fit(small("gan", optimizer__lr=1e30), digits, path))


def test_an_objective_that_is_not_finite_stops_the_run(digits: Dataset, path: Path) -> None:
    """One step makes an epoch: its loss was finite, what it made of the weights is not."""
    with pytest.raises(NonFiniteObjectiveError, match="val_mse is not finite; lower the learning rate"):
        list(fit(small("ae", optimizer__lr=1e38, training__batch_size=1437), digits, path))
    assert not path.exists()


def test_the_best_epoch_before_an_objective_that_is_not_finite_is_kept(digits: Dataset, path: Path) -> None:
    """One step makes an epoch, and the steps grow longer: what the last one made of the weights is not finite."""
    rising = {"optimizer__lr": 1e12, "optimizer__warmup_fraction": 0.99, "training__epochs": 40}
    with pytest.raises(NonFiniteObjectiveError):
        list(fit(small("ae", training__batch_size=1437, **rising), digits, path))
    record = saved_best(path)
    assert math.isfinite(record["metrics"]["val_mse"])
    assert all(weight.isfinite().all() for weight in checkpoint.read_weights(path, prefix=checkpoint.BEST).values())


def test_more_images_in_a_batch_than_there_are(digits: Dataset, path: Path) -> None:
    with pytest.raises(SpecError, match=r"training.batch_size: 1438 does not fit.*\(1437\)"):
        next(fit(small("ae", training__batch_size=1438), digits, path))
    with pytest.raises(SpecError, match=r"training.batch_size: 2 does not fit.*processes \(3\)"):
        Batches(digits.train.images, small("ae", training__batch_size=2), Group(world_size=3))
    packed = small("gan", training__batch_size=8, model__pack=4)
    with pytest.raises(SpecError, match=r"training.batch_size: 8 does not fit.*processes \(3, 4 images for each\)"):
        Batches(digits.train.images, packed, Group(world_size=3))


# Batches and noise


@given(count=st.integers(1, 60), batch_size=st.integers(1, 60), world_size=st.integers(1, 5), seed=st.integers(0, 9))
def test_ranks_share_each_batch_of_an_epoch_s_order(count: int, batch_size: int, world_size: int, seed: int) -> None:
    if not world_size <= batch_size <= count:
        return
    spec = small("ae", training__batch_size=batch_size, seed=seed)
    alone = Batches(numbered(count), spec, ALONE)
    ranks = [Batches(numbered(count), spec, Group(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert alone.per_epoch == count // batch_size
    whole = list(batches_from(alone, 0))
    seen = [number for batch in whole for number in numbers(batch)]
    assert len(seen) == len(set(seen)) == alone.per_epoch * batch_size
    for batch, *parts in zip(whole, *(batches_from(rank, 0) for rank in ranks), strict=True):
        assert [number for part in parts for number in numbers(part)] == numbers(batch)
        assert max(len(part.images) for part in parts) - min(len(part.images) for part in parts) <= 1
        for draw in (lambda noise: noise.normal("here", 3), lambda noise: noise.uniform("here", 2, 2)):
            assert torch.equal(torch.cat([draw(part.noise) for part in parts]), draw(batch.noise))


@given(packs=st.integers(1, 20), pack=st.integers(1, 6), world_size=st.integers(1, 5))
def test_ranks_share_images_that_are_judged_together_by_whole_packs(packs: int, pack: int, world_size: int) -> None:
    parts = [Group(rank=rank, world_size=world_size).rows(packs * pack, together=pack) for rank in range(world_size)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(packs * pack))
    assert all(part.start % pack == part.stop % pack == 0 for part in parts)
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) in (0, pack)


def test_the_average_takes_over_what_is_no_parameter() -> None:
    """Spectral norm's vectors: with those of the first weights it would divide by another number than the norm."""
    training = started(small("gan", model__spectral_norm=True, training__ema_half_life_images=100_000))
    first = {name: buffer.clone() for name, buffer in training.model.named_buffers()}
    for step in range(3):
        training.step(only_batch(training, step), step)
    latest = dict(training.model.named_buffers())
    assert training.average is not None
    assert first.keys() == latest.keys()
    for name, buffer in training.average.named_buffers():
        assert torch.equal(buffer, latest[name])
        # The vector of a layer of one output has one number, which is 1 always.
        assert len(buffer) == 1 or not torch.equal(buffer, first[name])


def test_order_and_noise_depend_on_seed_epoch_and_step_alone() -> None:
    def drawn(step: int, seed: int = 0) -> tuple[list[int], list[float]]:
        batches = Batches(numbered(50), small("ae", training__batch_size=10, seed=seed), ALONE)
        batch = next(batches_from(batches, step))
        return numbers(batch), batch.noise.normal("here", 3).flatten().tolist()

    assert drawn(7) == drawn(7)
    first = [drawn(0), drawn(1), drawn(5), drawn(0, seed=1)]
    assert len({tuple(order) for order, _ in first}) == 4
    assert len({tuple(noise) for _, noise in first}) == 4
    # Starting in the middle of an epoch is going on with it.
    batches = Batches(numbered(50), small("ae", training__batch_size=10), ALONE)
    from_5, from_7 = ([numbers(batch) for batch in batches_from(batches, step)] for step in (5, 7))
    assert from_5[2:] == from_7


def test_noise_is_its_own_for_each_purpose() -> None:
    noise = only_batch(started(small("ae"))).noise
    assert torch.equal(noise.normal("one", 4), noise.normal("one", 4))
    assert not torch.equal(noise.normal("one", 4), noise.normal("two", 4))
    uniform = noise.uniform("one", 200)
    assert (uniform.min() >= 0, uniform.max() < 1) == (True, True)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    normal = noise.normal("one", 200)
    assert (normal.mean().item(), normal.std().item()) == pytest.approx((0, 1), abs=0.02)


def test_images_reach_the_model_between_0_and_1(digits: Dataset) -> None:
    [batch] = batches_from(Batches(digits.train.images, small("ae", training__batch_size=1437), ALONE), 0)
    assert batch.images.dtype == torch.float32
    assert (batch.images.min(), batch.images.max()) == (0, 1)


# One step


class TwoSpeeds(Model):
    """Two numbers, each with a phase that pulls it down at the same slope: one rarely and slowly."""

    class Options(ModelOptions, frozen=True, extra="forbid"):
        name: str = "two-speeds"

    def __init__(self, options: BaseModel, shape: ImageShape) -> None:
        super().__init__(self.Options(), shape)
        self.often, self.rarely = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def phases(self) -> list[Phase]:
        def loss(parameter: nn.Parameter) -> Any:
            def of(batch: Batch) -> tuple[Tensor, Metrics]:
                return parameter * 1.0, {}

            return of

        return [
            Phase(name="often", params=[self.often], loss=loss(self.often)),
            Phase(name="rarely", params=[self.rarely], loss=loss(self.rarely), every=3, lr_scale=0.1),
        ]


def test_a_phase_runs_on_every_nth_step_at_its_own_rate() -> None:
    """At a constant slope, Adam moves by exactly the learning rate."""
    spec = small("ae", optimizer__lr=1e-2)
    training = Training(spec, TwoSpeeds(spec.model, SHAPE), steps=10, group=ALONE)
    ran = [[done.phase for done in training.step(only_batch(training), step)] for step in range(7)]
    assert ran == [["often"], ["often"], ["often", "rarely"]] * 2 + [["often"]]
    assert training.model.often.item() == pytest.approx(-7 * 1e-2, rel=1e-4)
    assert training.model.rarely.item() == pytest.approx(-2 * 1e-3, rel=1e-4)


def test_the_rate_follows_the_schedule() -> None:
    spec = small("ae", optimizer__lr=1e-2, optimizer__schedule="cosine", optimizer__warmup_fraction=0.5)
    training = Training(spec, TwoSpeeds(spec.model, SHAPE), steps=8, group=ALONE)
    moved = []
    for step in range(8):
        before = training.model.often.item()
        training.step(only_batch(training), step)
        moved.append((before - training.model.often.item()) / 1e-2)
    cosine = [0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert moved == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosine], abs=1e-4)


def test_clipping_bounds_the_gradient_that_is_applied() -> None:
    def gradient(**settings: Any) -> Tensor:
        training = started(small("vae", **settings))
        training.step(only_batch(training), 0)
        return torch.cat([parameter.grad.flatten() for parameter in training.model.parameters()])

    free = gradient()
    assert free.norm() > 1
    clipped = gradient(optimizer__clip_norm=0.5)
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(clipped, free * (0.5 / free.norm()), rtol=1e-4, atol=1e-7)
    assert torch.equal(gradient(optimizer__clip_norm=1e6), free)


def averaged_after(steps: int, *, first_step: int, half_life_images: int) -> float:
    """A moving average that begins at 0, of weights that stay at 1."""
    training = started(small("ae", training__ema_half_life_images=half_life_images, optimizer__lr=1e-30))
    average = training.average
    assert average is not None
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.fill_(1)
        for parameter in average.parameters():
            parameter.zero_()
    for step in range(first_step, first_step + steps):
        training.step(only_batch(training), step)
    [value] = {round(parameter.mean().item(), 6) for parameter in average.parameters()}
    return value


def test_the_moving_average_has_the_half_life_asked_for() -> None:
    assert averaged_after(20, first_step=100_000, half_life_images=2000) == pytest.approx(0.5, abs=1e-4)
    assert averaged_after(40, first_step=100_000, half_life_images=2000) == pytest.approx(0.75, abs=1e-4)


def test_a_young_moving_average_looks_back_less_far() -> None:
    """So the first samples are not those of the initial weights: half is forgotten in a twentieth of the images."""
    assert averaged_after(1, first_step=0, half_life_images=10**9) == pytest.approx(1 - 0.5**20, abs=1e-4)
    assert averaged_after(1, first_step=19, half_life_images=10**9) == pytest.approx(0.5, abs=1e-4)


def test_without_a_half_life_the_weights_themselves_are_judged() -> None:
    training = started(small("ae"))
    assert training.judged is training.model


# Precision and compilation


def test_bf16_comes_close_and_keeps_weights_in_fp32(digits: Dataset, path: Path) -> None:
    [exact], [mixed] = (
        list(fit(small("vae", training__epochs=1, training__precision=name), digits, path.with_name(name)))
        for name in ("fp32", "bf16")
    )
    assert mixed.metrics == pytest.approx(exact.metrics, rel=0.05)
    assert mixed.metrics != exact.metrics
    assert {tensor.dtype for tensor in weights(path.with_name("bf16")).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gan", {}),
        ("gan", {"model__loss": "wgan-gp"}),
        ("gan", {"model__r1": 1.0, "model__r1_every": 4, "model__spectral_norm": True, "model__pack": 2}),
        ("aegan", {}),
        ("aegan", {"model__judges": "pairs"}),
        ("vaegan", {}),
    ],
)
def test_bf16_suits_a_gan(model: str, options: dict[str, Any], digits: Dataset, path: Path) -> None:
    chosen = {"training__epochs": 1, "training__precision": "bf16", "model__arch": "conv", "model__width": 8}
    spec = small(model, **chosen, **options)
    [epoch] = fit(spec, digits, path)
    assert all(math.isfinite(value) for value in epoch.metrics.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiling_changes_the_speed_alone(digits: Dataset, path: Path) -> None:
    for compile_ in ("off", "on"):
        spec = small("ae", training__epochs=1, training__compile=compile_, model__hidden=[])
        list(fit(spec, digits, path.with_name(compile_)))
    plain, compiled_weights = weights(path.with_name("off")), weights(path.with_name("on"))
    assert plain.keys() == compiled_weights.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], compiled_weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize(
    ("model", "options"),
    [("gan", {"model__spectral_norm": True, "model__pack": 2}), ("aegan", {"model__judges": "pairs"}), ("vaegan", {})],
)
def test_no_loss_of_several_is_left_uncompiled(
    model: str, options: dict[str, Any], digits: Dataset, path: Path
) -> None:
    """Nor in a process that trains one model after another; torch falls back in silence past a limit."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        trained = []
        for compile_ in ("off", "on"):
            spec = small(model, training__compile=compile_, training__epochs=1, **options)
            list(fit(spec, digits, path.with_name(compile_)))
            trained.append(weights(path.with_name(compile_)))
    plain, same = trained
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, same[name], rtol=1e-3, atol=1e-4)


def test_any_images_will_do(path: Path) -> None:
    """What is trained on is the dataset handed in, whatever its name and size."""
    images = torch.randint(0, 256, (30, 3, 9, 12), dtype=torch.uint8)
    dataset = data.Dataset("mine", data.Part(images[:24]), data.Part(images[24:]), None, "")
    [epoch] = fit(small("vae", training__epochs=1, training__batch_size=10), dataset, path)
    assert epoch.step == 2
