"""What every model promises; a new file in raygen/models is tested here without a change.

`python -m tests.gpu` runs this on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from raygen import models
from raygen.errors import SpecError
from raygen.models._base import Batch, GaussianEncoder, ImageShape, LikelihoodModel, Model, Reconstructor, Sampler
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.checkpoint import Progress
from raygen.training.distributed import Group
from raygen.training.step import Training, build_model
from tests.device import DEVICE, ROUNDING

MakeBatch = Callable[..., Batch]

SMALL = {"model.hidden": [32, 16], "model.width": 8, "model.latent_dim": 6, "optimizer.lr": 5e-3}
SHAPES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 9, 11), (1, 13, 32)]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ae": [
        {},
        {"loss": "bce", "corruption": "noise"},
        {"activation": "silu", "latent_activation": "tanh"},
        {"arch": "mlp", "activation": "gelu", "decoder_hidden": [24, 8, 48]},
    ],
    "vae": [{}, {"likelihood": "gaussian", "beta": 4.0}, {"arch": "mlp", "activation": "elu", "corruption": "mask"}],
    "gan": [
        {},
        {"arch": "mlp", "loss": "minimax"},
        {"loss": "lsgan"},
        {"loss": "hinge"},
        {"loss": "wgan-gp"},
        {"gradient_penalty": 1.0, "discriminator_lr_scale": 2.0},
        {"r1": 0.1, "r1_every": 2},
        {"spectral_norm": True, "loss": "hinge"},
        {"pack": 2, "r1": 0.1, "r1_every": 1, "spectral_norm": True, "loss": "hinge"},
        {"pack": 2, "loss": "wgan-gp"},
        {"prior": "uniform", "activation": "leaky-relu", "discriminator_activation": "gelu"},
    ],
    "aegan": [
        {},
        {"judges": "pairs"},
        {"arch": "mlp", "prior": "uniform", "activation": "elu", "discriminator_activation": "silu"},
        {"arch": "mlp", "corruption": "downsample", "corruption_factor": 2},
        {"adversarial": "both", "latent_judge": False, "cycle": 2.0},
        {"adversarial": "reconstructions", "prior": "uniform", "cycle": 0.5},
        {"judges": "pairs", "loss": "minimax", "cycle": 1.0, "pair_features": 0},
        {"arch": "mlp", "adversarial": "both", "loss": "minimax"},
        {"arch": "mlp", "adversarial": "reconstructions", "latent_judge": False, "objective": "val_mse"},
    ],
    "vaegan": [
        {},
        {"arch": "mlp", "activation": "silu", "discriminator_activation": "elu"},
        {"arch": "mlp", "corruption": "noise", "corruption_std": 0.2},
    ],
}

PARTNERS = {"encoder"}
"""Phases that win little while what they learn with is frozen: the test of reconstructions sees to them."""

LEARNS_BY_HEART: dict[str, dict[str, Any]] = {"vaegan": {"model.gamma": 1.0, "model.beta": 0.1}}
"""Settings under which a family can reconstruct five images, where its defaults are for many."""


@dataclass(frozen=True)
class Case:
    """One model with some options, for images of one shape."""

    spec: TrainSpec
    shape: ImageShape

    def build(self, seed: int = 0) -> Model:
        return build_model(self.spec.with_settings({"seed": seed}), self.shape, DEVICE)

    def training(self, **settings: Any) -> Training:
        spec = self.spec.with_settings(settings)
        return Training(spec, build_model(spec, self.shape, DEVICE), steps=100, group=Group(device=DEVICE))

    def batch_images(self) -> Tensor:
        """A batch of 5 images, or of 6 where they are judged in pairs."""
        return self.images(self.spec.training.batch_size)

    def images(self, count: int) -> Tensor:
        """Black and white images with large patches, each its own."""
        patches = torch.rand(count, self.shape.channels, 3, 3, generator=torch.Generator().manual_seed(1))
        return F.interpolate(patches, size=tuple(self.shape)[1:]).round().to(DEVICE)


def case(name: str, arch: str, variant: dict[str, Any], shape: tuple[int, int, int]) -> Any:
    parts = {"corruption": "data", "objective": "evaluation"}
    options = {
        f"{parts.get(key.partition('_')[0], 'model')}.{key}": value for key, value in {"arch": arch, **variant}.items()
    }
    batch = {"training.batch_size": 6 if "pack" in variant else 5, "training.ema_half_life_images": 0}
    label = "-".join([name, arch, *map(str, variant.values()), "×".join(map(str, shape))])
    return pytest.param(Case(TrainSpec.create(name, {**SMALL, **batch, **options}), ImageShape(*shape)), id=label)


CASES = [
    case(name, arch, variant, shape)
    for name in models.names()
    for arch in ("mlp", "conv")
    for variant in VARIANTS.get(name, [{}])
    if variant.get("arch", arch) == arch
    for shape in (SHAPES if not variant else SHAPES[:1])
]


def has_likelihood(case: Case) -> bool:
    return issubclass(models.find(case.spec.model.name), LikelihoodModel)


def has_posterior(case: Case) -> bool:
    return issubclass(models.find(case.spec.model.name), GaussianEncoder)


every_case = pytest.mark.parametrize("case", CASES)
every_option = pytest.mark.parametrize("case", [case for case in CASES if case.values[0].shape == SHAPES[0]])
every_model = pytest.mark.parametrize("name", models.names())


def weights(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(training: Training, batch: Batch, steps: int) -> None:
    for step in range(steps):
        training.step(batch, step)


@torch.no_grad()
def reconstruction_error(model: Model, batch: Batch) -> float:
    """Of the clean images, from what the model sees of them; zero for a model that does not reconstruct."""
    if not isinstance(model, Reconstructor):
        return 0.0
    return F.mse_loss(model.decode(model.encode(batch.inputs)), batch.images).item()


@every_case
def test_phases_cover_all_parameters(case: Case) -> None:
    model = case.build()
    phases = model.phases()
    assert {id(parameter) for phase in phases for parameter in phase.params} == set(map(id, model.parameters()))
    by_name = {phase.name: phase for phase in phases}
    assert len(by_name) == len(phases)
    for phase in phases:
        if phase.optimizer_of is not None:
            owner = by_name[phase.optimizer_of]
            assert owner.optimizer_of is None
            assert list(map(id, owner.params)) == list(map(id, phase.params))


@every_case
def test_a_phase_changes_its_own_parameters_only(case: Case, make_batch: MakeBatch) -> None:
    for phase in case.build().phases():
        training = case.training()
        [own] = training.phases = [candidate for candidate in training.phases if candidate.name == phase.name]
        own_parameters = set(map(id, own.params))
        before = weights(training.model)
        [step] = training.step(make_batch(case.batch_images(), data=case.spec.data), step=own.every - 1)
        assert step.phase == phase.name
        changed = [
            parameter
            for name, parameter in training.model.named_parameters()
            if not torch.equal(parameter, before[name])
        ]
        assert changed
        assert own_parameters.issuperset(map(id, changed))
        # What is not trained costs no gradient either.
        others = [parameter for parameter in training.model.parameters() if id(parameter) not in own_parameters]
        assert all(parameter.grad is None and parameter.requires_grad for parameter in others)


@every_case
def test_arch_is_what_it_says(case: Case) -> None:
    """Also for the smallest images, which leave room for one convolution only."""
    convolutions = [module for module in case.build().modules() if isinstance(module, nn.Conv2d)]
    assert bool(convolutions) == (case.spec.model.arch == "conv")


@every_option
def test_losses_and_gradients_are_finite(case: Case, make_batch: MakeBatch) -> None:
    model = case.build()
    trained = set()
    for phase in model.phases():
        loss, metrics = phase.loss(make_batch(case.batch_images(), data=case.spec.data))
        assert loss.shape == ()
        for value in (loss, *metrics.values()):
            assert value.isfinite()
        # A penalty on slopes says nothing of the last bias; the phase that it shares an optimizer with does.
        for parameter, gradient in zip(
            phase.params, torch.autograd.grad(loss, list(phase.params), allow_unused=True), strict=True
        ):
            if gradient is not None:
                assert gradient.isfinite().all()
                trained.add(parameter)
    assert trained == set(model.parameters())


@every_case
def test_each_phase_overfits_one_batch(case: Case, make_batch: MakeBatch) -> None:
    """With several phases each must win against what the ones before it have learnt, frozen."""
    training, images = case.training(), case.batch_images()
    for phase in training.model.phases():
        training.phases = [phase]
        first = phase.loss(make_batch(images, data=case.spec.data))[0].item()
        for number in range(1, 101):
            training.step(make_batch(images, step=number, data=case.spec.data), step=phase.every - 1)
        last = phase.loss(make_batch(images, data=case.spec.data))[0].item()
        assert phase.name in PARTNERS or last < first - 0.5 * abs(first)


@every_option
def test_one_batch_is_reconstructed(case: Case, make_batch: MakeBatch) -> None:
    training, images = case.training(**LEARNS_BY_HEART.get(case.spec.model.name, {})), case.batch_images()
    unseen = make_batch(images, step=1000, data=case.spec.data)
    untrained = reconstruction_error(training.model, unseen)
    for step in range(200):
        training.step(make_batch(images, step=step, data=case.spec.data), step)
    assert reconstruction_error(training.model, unseen) <= 0.5 * untrained


@every_case
def test_the_loss_is_a_mean_over_images(case: Case, make_batch: MakeBatch) -> None:
    """So unequal parts of a batch, each with its rows of the noise, add up to the whole on any number of devices."""
    images = case.batch_images() * 0.8 + 0.1
    count = len(images)
    for index in range(len(case.build().phases())):
        # A model for each, as each process has one: spectral norm makes one step of its iteration in each pass.
        (loss, metrics), (first, first_metrics), (second, second_metrics) = (
            case.build().phases()[index].loss(make_batch(images, rows=rows, data=case.spec.data))
            for rows in (slice(0, count), slice(0, 2), slice(2, count))
        )
        assert loss.item() == pytest.approx(
            (2 * first + (count - 2) * second).item() / count, rel=ROUNDING, abs=ROUNDING / 10
        )
        for name, value in metrics.items():
            mean = (2 * first_metrics[name] + (count - 2) * second_metrics[name]).item() / count
            assert value.item() == pytest.approx(mean, rel=ROUNDING, abs=ROUNDING / 10)


@every_option
def test_the_same_seed_gives_the_same_bits(case: Case, make_batch: MakeBatch) -> None:
    first, second = case.training(), case.training()
    run(first, make_batch(case.batch_images(), data=case.spec.data), steps=6)
    torch.manual_seed(99)
    run(second, make_batch(case.batch_images(), data=case.spec.data), steps=6)
    assert same(weights(first.model), weights(second.model))


@every_model
def test_another_seed_gives_other_weights_and_the_global_generator_is_left_alone(name: str) -> None:
    case = Case(TrainSpec.create(name, SMALL), ImageShape(1, 8, 8))
    state = torch.random.get_rng_state()
    first, second = weights(case.build(seed=0)), weights(case.build(seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for tensor, other in zip(first.values(), second.values(), strict=True):
        # What starts as a constant, such as the scale of a normalisation, is the same for every seed.
        assert len(tensor.unique()) == 1 or not torch.equal(tensor, other)


@every_option
def test_a_checkpoint_holds_the_whole_state(case: Case, make_batch: MakeBatch, tmp_path: Path) -> None:
    average = {"training.ema_half_life_images": 1000}
    original, restored = case.training(**average), case.training(**average, seed=7)
    batch = make_batch(case.batch_images(), data=case.spec.data)
    run(original, batch, steps=6)
    checkpoint.save(tmp_path / "checkpoint", original.trained, Progress(step=6))
    assert checkpoint.restore(tmp_path / "checkpoint", restored.trained).step == 6
    assert same(weights(original.model), weights(restored.model))
    for training in (original, restored):
        run(training, batch, steps=6)
    assert same(weights(original.model), weights(restored.model))
    assert same(weights(original.judged), weights(restored.judged))


@every_case
@torch.no_grad()
def test_images_have_the_right_shape_and_range(case: Case) -> None:
    model = case.build()
    latents = 100 * torch.randn(5, model.latent_dim, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert isinstance(model, Sampler | Reconstructor)
    made = [model.sample(latents)] if isinstance(model, Sampler) else []
    if isinstance(model, Reconstructor):
        encoded = model.encode(case.batch_images())
        assert encoded.shape == (5, model.latent_dim)
        made += [model.decode(encoded), model.decode(latents)]
    for images in made:
        assert images.shape == (5, *case.shape)
        assert images.min() >= 0
        assert images.max() <= 1
        assert len(images.unique()) > 5, "constant images"


@pytest.mark.parametrize("case", [case for case in CASES if has_likelihood(case.values[0])])
@torch.no_grad()
def test_the_bound_is_one_number_for_each_image(case: Case) -> None:
    model = case.build()
    assert isinstance(model, LikelihoodModel)
    images, noise = case.batch_images(), torch.randn(5, model.latent_dim, device=DEVICE)
    bound = model.elbo(images, noise)
    assert bound.shape == (5,)
    assert bound[3:].tolist() == pytest.approx(model.elbo(images[3:], noise[3:]).tolist(), rel=ROUNDING)


@pytest.mark.parametrize("case", [case for case in CASES if has_posterior(case.values[0])])
@torch.no_grad()
def test_a_posterior_is_a_gaussian_around_the_encoding(case: Case) -> None:
    model = case.build()
    assert isinstance(model, GaussianEncoder)
    assert isinstance(model, Reconstructor)
    mean, log_variance = model.posterior(case.batch_images())
    assert mean.shape == log_variance.shape == (5, model.latent_dim)
    assert log_variance.exp().isfinite().all()
    torch.testing.assert_close(mean, model.encode(case.batch_images()))


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (2, 8, 8), (4, 32, 32), (3, 4, 4)])
@pytest.mark.parametrize("arch", ["mlp", "conv"])
@every_model
def test_other_shapes_are_refused_with_those_it_takes(name: str, arch: str, shape: tuple[int, int, int]) -> None:
    spec = TrainSpec.create(name, {"model.arch": arch})
    with pytest.raises(SpecError) as caught:
        build_model(spec, ImageShape(*shape), DEVICE)
    message = str(caught.value)
    assert f"{shape[1]}×{shape[2]} with {shape[0]} channel" in message
    assert "8×8 and larger with 1 or 3 channels" in message


@every_model
@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(8, 40), st.integers(8, 40)),
    arch=st.sampled_from(["mlp", "conv"]),
    width=st.integers(1, 12),
    hidden=st.lists(st.integers(1, 8), max_size=3),
)
@settings(max_examples=40)
@torch.no_grad()
def test_any_size_from_8_up(name: str, shape: tuple[int, int, int], arch: str, width: int, hidden: list[int]) -> None:
    options = {"model.arch": arch, "model.width": width, "model.hidden": hidden, "model.latent_dim": 3}
    model = build_model(TrainSpec.create(name, options), ImageShape(*shape), DEVICE)
    if isinstance(model, Sampler):
        assert model.sample(torch.zeros(2, 3, device=DEVICE)).shape == (2, *shape)
    if isinstance(model, Reconstructor):
        assert model.decode(model.encode(torch.zeros(2, *shape, device=DEVICE))).shape == (2, *shape)


@every_model
def test_names_and_options_are_described(name: str) -> None:
    model = models.find(name)
    assert models.names()[name].endswith(".")
    assert model.Options().name == name
    assert all(field.description for key, field in model.Options.model_fields.items() if key != "name")


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="no model 'gam'; did you mean 'gan'"):
        models.find("gam")
    with pytest.raises(SpecError, match=f"models: {', '.join(models.names())}"):
        models.find("transformer")
