"""A GAN's generator that begins as an autoencoder's decoder, on latents of its codes' mean and covariance."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cli.options import settings
from raygen import data, metrics, results, warm_start
from raygen.data import Dataset, Part
from raygen.errors import CheckpointError, RaygenError, RunError, SpecError
from raygen.models._base import ImageShape
from raygen.plan import Plan
from raygen.runs import WARM_WEIGHTS, Run
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU, Group
from raygen.training.loop import build_model, fit

Train = Callable[..., Path]
PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
SHAPE = ImageShape(1, 8, 8)
SMALL = {"model.arch": "mlp", "model.hidden": [48, 24], "model.latent_dim": 6}


@pytest.fixture
def trained(tmp_path: Path, digits: Dataset) -> Train:
    """Function that trains a model and returns the folder of its best checkpoint."""

    def train(model: str, epochs: int = 1, **options: Any) -> Path:
        own = {f"model.{name}": value for name, value in options.items()}
        spec = TrainSpec.create(model, {**SMALL, "training.epochs": epochs, "optimizer.lr": 3e-3, **own})
        run = Run.create(tmp_path, "train", spec, PLAN, metrics.find(spec.evaluation.objective).direction)
        trial = run.new_trial(1, {}, spec)
        for epoch in fit(spec, digits, trial.checkpoint):
            trial.record_epoch(epoch)
        results.collect_best(run)
        return run.best()

    return train


def gan(**options: Any) -> TrainSpec:
    own = {f"model.{name}": value for name, value in options.items()}
    return TrainSpec.create("gan", {**SMALL, "training.epochs": 2, "training.batch_size": 100, **own})


def begun(spec: TrainSpec, weights: bytes, folder: Path) -> tuple[Any, Path]:
    """The GAN as its training begins, and the file that it begins with."""
    path = folder / WARM_WEIGHTS
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
    place = trained(model, **options)
    options.pop("latent_activation", None)
    spec, weights = warm_start.from_decoder(place, gan(prior=prior, **options), digits)
    generated, _ = begun(spec, weights, tmp_path)
    source: Any = results.load(place).model
    mean, covariance = moments(source, digits.train.images.float() / 255)
    numbers = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    # Of variance 1 both: standard normal, and uniform in (-√3, √3).
    draws = math.sqrt(3) * (2 * torch.special.ndtr(numbers) - 1) if prior == "uniform" else numbers
    variances, directions = np.linalg.eigh(covariance)
    root = torch.from_numpy(directions @ np.diag(np.sqrt(variances.clip(min=0))) @ directions.T).float()
    with torch.no_grad():
        made = generated.sample(numbers)
    torch.testing.assert_close(made, source.decode(mean + draws @ root), atol=1e-4, rtol=0)


def test_the_discriminator_begins_as_any_other(trained: Train, digits: Dataset, tmp_path: Path) -> None:
    spec, weights = warm_start.from_decoder(trained("ae"), gan(), digits)
    model, _ = begun(spec, weights, tmp_path)
    plain: Any = build_model(gan(), SHAPE, CPU)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == name.startswith("discriminator.")


def test_the_spec_says_what_the_training_begins_with(trained: Train, digits: Dataset) -> None:
    place = trained("ae")
    spec, _ = warm_start.from_decoder(place, gan(), digits)
    assert spec.warm_start is not None
    assert spec.warm_start.source == str(place)
    assert spec == warm_start.from_decoder(place, gan(), digits)[0], "the same autoencoder, the same spec"
    assert spec != warm_start.from_decoder(trained("ae", epochs=2), gan(), digits)[0]
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.with_settings({"seed": 1}).warm_start == spec.warm_start
    assert spec.with_settings({}).model_copy(update={"warm_start": None}) == gan()
    for path in ("warm_start", "warm_start.digest"):
        with pytest.raises(SpecError, match=r"it follows from `raygen train gan --from RUN`"):
            TrainSpec.create("gan", {path: "x"})


# Training from there


def test_the_first_epoch_is_nearer_to_the_data(trained: Train, digits: Dataset, tmp_path: Path) -> None:
    spec, weights = warm_start.from_decoder(trained("ae", epochs=20), gan(), digits)
    _, path = begun(spec, weights, tmp_path)
    scratch = next(fit(gan(), digits, tmp_path / "scratch"))
    warm = next(fit(spec, digits, tmp_path / "warm", warm_weights=path))
    assert warm.metrics["val_frechet"] < 0.7 * scratch.metrics["val_frechet"]


def test_a_training_goes_on_exactly_without_the_autoencoder(
    trained: Train, digits: Dataset, tmp_path: Path, path: Path
) -> None:
    place = trained("vae")
    spec, weights = warm_start.from_decoder(place, gan(), digits)
    _, file = begun(spec, weights, tmp_path)
    shutil.rmtree(place.parents[1])
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
    started_from, weights = warm_start.from_decoder(trained("ae"), gan(), digits)
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
    spec, weights = warm_start.from_decoder(trained("ae"), gan(), digits)
    _, file = begun(spec, weights, tmp_path)
    for damage in (lambda: file.write_bytes(weights[:-4] + b"\0\0\0\1"), file.unlink):
        damage()
        with pytest.raises(CheckpointError, match="cannot start from the weights") as caught:
            next(fit(spec, digits, path, warm_weights=file))
        assert str(file) in str(caught.value)


# What is refused


def refusal(place: Path, spec: TrainSpec, dataset: Dataset, kind: type[RaygenError]) -> str:
    with pytest.raises(kind) as caught:
        warm_start.from_decoder(place, spec, dataset)
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
    place, defaults = trained("ae", **options), TrainSpec.create("gan", {})
    said = refusal(place, defaults, digits, SpecError)
    typed = shlex.split(said.partition(": type ")[2])[1::2]
    assert set(expected) <= set(typed)
    wanted = defaults.with_settings(settings({"assignments": typed}))
    assert warm_start.from_decoder(place, wanted, digits)[0].warm_start is not None


def test_what_is_no_decoder_for_a_gan(trained: Train, digits: Dataset, tmp_path: Path) -> None:
    place = trained("ae")
    vae = TrainSpec.create("vae", SMALL)
    assert "--from is for gan, whose generator begins as a decoder" in refusal(place, vae, digits, SpecError)
    images = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    larger = Dataset("larger", Part(images), Part(images), None, "")
    assert "the model takes images of 8×8 with 1 channel, but larger has 28×28" in refusal(
        place, gan(), larger, SpecError
    )
    for family in ("gan", "aegan"):
        assert f"holds a model of {family}; --from takes a run of ae, vae or vaegan" in refusal(
            trained(family), gan(), digits, RunError
        )
    assert "holds no checkpoint" in refusal(tmp_path, gan(), digits, RunError)
