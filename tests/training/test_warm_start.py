"""A GAN's generator that begins as an autoencoder's decoder, on latents of its codes' mean and covariance."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cli.training_options import settings
from raygen import collection, data, results, warm_start
from raygen.data import Dataset, Part
from raygen.errors import CheckpointError, RaygenError, RunError, SpecError
from raygen.models._base import ImageShape
from raygen.results import TrainedModel
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU, Group
from raygen.training.loop import fit
from raygen.training.step import build_model
from tests.searches import begin, create, run_of, train_trial

Train = Callable[..., TrainedModel]
SHAPE = ImageShape(1, 8, 8)
SMALL = {"model.arch": "mlp", "model.hidden": [48, 24], "model.latent_dim": 6}


@pytest.fixture
def trained(tmp_path: Path, digits: Dataset) -> Train:
    """Function that trains a model and returns the best of it."""

    def train(model: str, epochs: int = 1, **options: Any) -> TrainedModel:
        own = {f"model.{name}": value for name, value in options.items()}
        spec = TrainSpec.create(model, {**SMALL, "training.epochs": epochs, "optimizer.lr": 3e-3, **own})
        run = begin(create(tmp_path / "runs", spec))
        train_trial(run, 1, {}, digits)
        collection.collect_best(run)
        return results.of_run(run_of(run))

    return train


def gan(**options: Any) -> TrainSpec:
    own = {f"model.{name}": value for name, value in options.items()}
    return TrainSpec.create("gan", {**SMALL, "training.epochs": 2, "training.batch_size": 100, **own})


def begun(spec: TrainSpec, weights: bytes, folder: Path) -> tuple[Any, Path]:
    """The GAN as its training begins, and the file that it begins with."""
    path = folder / "warm_start.safetensors"
    path.write_bytes(weights)
    model = build_model(spec, SHAPE, CPU)
    assert spec.warm_start is not None
    checkpoint.begin_with(path, spec.warm_start.digest, model)
    return model, path


def moments(model: Any, images: Tensor) -> tuple[Tensor, Any]:
    """Mean and covariance of what is decoded, by numpy; of a Gaussian posterior by the law of total variance."""
    codes = model.encode(images)
    variance = model.posterior(images)[1].exp().mean(dim=0) if hasattr(model, "posterior") else torch.zeros(6)
    covariance = np.cov(codes.double().numpy(), rowvar=False, ddof=0) + np.diag(variance.double().numpy())
    return codes.mean(dim=0), covariance


# What a training begins with


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("ae", {"activation": "elu"}),
        ("ae", {"latent_activation": "relu", "decoder_hidden": [20]}),
        ("ae", {"arch": "conv", "width": 8}),
        ("vae", {}),
        ("vaegan", {}),
    ],
)
@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_the_first_samples_are_the_decoder_s_of_codes_drawn_from_their_moments(
    model: str, options: dict[str, Any], prior: str, trained: Train, digits: Dataset, tmp_path: Path
) -> None:
    source = trained(model, **options)
    options.pop("latent_activation", None)
    spec, weights = warm_start.from_decoder("it", source, gan(prior=prior, **options), digits)
    generated, _ = begun(spec, weights, tmp_path)
    decoder: Any = source.model
    mean, covariance = moments(decoder, digits.train.images.float() / 255)
    numbers = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    # Of variance 1 both: standard normal, and uniform in (-√3, √3).
    draws = math.sqrt(3) * (2 * torch.special.ndtr(numbers) - 1) if prior == "uniform" else numbers
    variances, directions = np.linalg.eigh(covariance)
    root = torch.from_numpy(directions @ np.diag(np.sqrt(variances.clip(min=0))) @ directions.T).float()
    with torch.no_grad():
        made = generated.sample(numbers)
    torch.testing.assert_close(made, decoder.decode(mean + draws @ root), atol=1e-4, rtol=0)


def test_the_discriminator_begins_as_any_other(trained: Train, digits: Dataset, tmp_path: Path) -> None:
    spec, weights = warm_start.from_decoder("it", trained("ae"), gan(), digits)
    model, _ = begun(spec, weights, tmp_path)
    plain: Any = build_model(gan(), SHAPE, CPU)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == name.startswith("discriminator.")


def test_the_spec_says_what_the_training_begins_with(trained: Train, digits: Dataset) -> None:
    source = trained("ae")
    spec, _ = warm_start.from_decoder("it", source, gan(), digits)
    assert spec.warm_start is not None
    assert spec.warm_start.source == "it"
    assert spec == warm_start.from_decoder("it", source, gan(), digits)[0], "the same autoencoder, the same spec"
    assert spec != warm_start.from_decoder("it", trained("ae", epochs=2), gan(), digits)[0]
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.with_settings({"seed": 1}).warm_start == spec.warm_start
    assert spec.with_settings({}).model_copy(update={"warm_start": None}) == gan()
    for path in ("warm_start", "warm_start.digest"):
        with pytest.raises(SpecError, match=r"it follows from `raygen train gan --from RUN`"):
            TrainSpec.create("gan", {path: "x"})


# Training from there


def test_the_first_epoch_is_nearer_to_the_data(trained: Train, digits: Dataset, tmp_path: Path) -> None:
    spec, weights = warm_start.from_decoder("it", trained("ae", epochs=20), gan(), digits)
    _, path = begun(spec, weights, tmp_path)
    scratch = next(fit(gan(), digits, tmp_path / "scratch"))
    warm = next(fit(spec, digits, tmp_path / "warm", warm_weights=path))
    assert warm.metrics["val_frechet"] < 0.7 * scratch.metrics["val_frechet"]


def test_a_training_goes_on_exactly_without_the_autoencoder(
    trained: Train, digits: Dataset, tmp_path: Path, path: Path
) -> None:
    source = trained("vae")
    spec, weights = warm_start.from_decoder("it", source, gan(), digits)
    _, file = begun(spec, weights, tmp_path)
    whole = list(fit(spec, digits, tmp_path / "whole", warm_weights=file))
    stopped = fit(spec, digits, path, warm_weights=file)
    next(stopped)
    stopped.close()
    file.unlink()
    rest = list(fit(spec, digits, path, warm_weights=file))
    assert [epoch.metrics for epoch in rest] == [whole[1].metrics], "what a checkpoint holds is not read again"
    first, second = (checkpoint.read_weights(each) for each in (tmp_path / "whole", path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def join(rank: int, spec: str, file: Path, folder: Path) -> None:
    """One of two processes that train together."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting-point", rank=rank, world_size=2)
    group = Group.joined(CPU)
    for _ in fit(
        TrainSpec.model_validate_json(spec),
        data.load(data.DataOptions()),
        folder / "shared",
        group=group,
        warm_weights=file,
    ):
        pass
    torch.distributed.destroy_process_group()


def test_two_processes_begin_alike(
    trained: Train, digits: Dataset, tmp_path: Path, processes: ForkServerContext
) -> None:
    started_from, weights = warm_start.from_decoder("it", trained("ae"), gan(), digits)
    # A rate at which rounding does not grow with every step.
    spec = started_from.with_settings({"training.epochs": 1, "optimizer.lr": 2e-4})
    _, file = begun(spec, weights, tmp_path)
    started = [processes.Process(target=join, args=(rank, spec.model_dump_json(), file, tmp_path)) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    list(fit(spec, digits, tmp_path / "alone", warm_weights=file))
    alone, shared = (checkpoint.read_weights(tmp_path / name, prefix=checkpoint.MODEL) for name in ("alone", "shared"))
    for name, tensor in alone.items():
        assert (shared[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def test_other_weights_than_those_of_the_spec_are_refused(
    trained: Train, digits: Dataset, tmp_path: Path, path: Path
) -> None:
    spec, weights = warm_start.from_decoder("it", trained("ae"), gan(), digits)
    _, file = begun(spec, weights, tmp_path)
    for damage in (lambda: file.write_bytes(weights[:-4] + b"\0\0\0\1"), file.unlink):
        damage()
        with pytest.raises(CheckpointError, match="cannot start from the weights") as caught:
            next(fit(spec, digits, path, warm_weights=file))
        assert str(file) in str(caught.value)


# What is refused


def refusal(source: TrainedModel, spec: TrainSpec, dataset: Dataset, kind: type[RaygenError]) -> str:
    with pytest.raises(kind) as caught:
        warm_start.from_decoder("it", source, spec, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["model.arch=mlp", "model.latent_dim=6", "model.decoder_hidden=[24, 48]"]),
        ({"activation": "gelu", "decoder_hidden": []}, ["model.decoder_hidden=[]", "model.activation=gelu"]),
        ({"arch": "conv", "width": 8, "latent_dim": 5}, ["model.latent_dim=5", "model.width=8"]),
    ],
)
def test_another_form_is_refused_with_what_to_set(
    options: dict[str, Any], expected: list[str], trained: Train, digits: Dataset
) -> None:
    source, defaults = trained("ae", **options), TrainSpec.create("gan", {})
    said = refusal(source, defaults, digits, SpecError)
    typed = shlex.split(said.partition(": type ")[2])[1::2]
    assert set(expected) <= set(typed)
    wanted = defaults.with_settings(settings({"assignments": typed}))
    assert warm_start.from_decoder("it", source, wanted, digits)[0].warm_start is not None


def test_what_is_no_decoder_for_a_gan(trained: Train, digits: Dataset) -> None:
    source = trained("ae")
    vae = TrainSpec.create("vae", SMALL)
    assert "--from is for gan, whose generator begins as a decoder" in refusal(source, vae, digits, SpecError)
    images = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    larger = Dataset("larger", Part(images), Part(images), None, "")
    assert "the model takes images of 8×8 with 1 channel, but larger has 28×28" in refusal(
        source, gan(), larger, SpecError
    )
    for family in ("gan", "aegan"):
        assert f"holds a model of {family}; --from takes a run of ae, vae or vaegan" in refusal(
            trained(family), gan(), digits, RunError
        )
