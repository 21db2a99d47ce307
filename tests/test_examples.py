"""The spec files in `examples/` build what their comments say, and `raygen train --spec` reads them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cli.main import app
from raygen import collection, data, film
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec, read_file
from raygen.training.distributed import CPU
from raygen.training.step import build_model
from tests.searches import begin, create, run_of, train_trial

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
MNIST = ImageShape(1, 28, 28)
PADDING = 2
"""Pixels between two images of a picture."""
NETWORK = re.compile(r"^# ([\w.]+): (\d+(?:-\d+)+)(?:, (?!code)([\w-]+))?(?:, code (\w+))?$", flags=re.MULTILINE)
LAYERS = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
}

every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def layers(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network if not isinstance(layer, nn.Flatten | nn.Unflatten)]  # type: ignore[attr-defined]


@every_example
def test_an_example_builds_what_its_comment_says(path: Path) -> None:
    text = path.read_text()
    model_name, settings = read_file(path)
    model = build_model(TrainSpec.create(model_name, settings), MNIST, CPU)
    described = NETWORK.findall(text)
    for name, sizes, activation, code in described:
        found = layers(model.get_submodule(name))
        dense = [layer for layer in found if isinstance(layer, nn.Linear)]
        assert "-".join(map(str, [dense[0].in_features, *(layer.out_features for layer in dense)])) == sizes
        between = [LAYERS[activation]] * (len(dense) - 1) if activation else []
        after = [LAYERS[code]] if code else []
        assert [type(layer) for layer in found if not isinstance(layer, nn.Linear)] == between + after
    own = {id(parameter) for name, *_ in described for parameter in model.get_submodule(name).parameters()}
    assert own == {id(parameter) for parameter in model.parameters()}, "every network is in the comment"
    [count] = re.findall(r"^# parameters: ([\d,]+)$", text, flags=re.MULTILINE)
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == count


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An array of 400 images of MNIST's shape: the digits' 8×8 pixels, enlarged."""
    small = data.load(data.DataOptions()).train.images[:400].float()
    images = nn.functional.interpolate(small, size=(28, 28), mode="bilinear").to(torch.uint8)
    path = tmp_path_factory.mktemp("drawn") / "drawn.npy"
    np.save(path, images[:, 0].numpy())
    return path


@every_example
def test_an_example_trains_and_ends_with_its_picture(path: Path, drawn: Path, tmp_path: Path) -> None:
    model, settings = read_file(path)
    own = {"data.source": str(drawn), "training.epochs": 1, "evaluation.images": 40}
    spec = TrainSpec.create(model, {**settings, **own})
    run = begin(create(tmp_path, spec))
    trial = train_trial(run, 1, {}, data.load(spec.data))
    assert [math.isfinite(value) for epoch in trial.epochs for value in epoch.metrics.values()] == [True] * len(
        trial.epochs[0].metrics
    )
    collection.collect_best(run)
    picture, (_, height, width) = film.of_best(run_of(run)) or pytest.fail("there is no picture")
    assert picture.size == (8 * (width + PADDING), 8 * (height + PADDING))
    assert len(picture.getcolors() or []) > 5


def test_there_are_examples_of_four_families() -> None:
    assert {read_file(path)[0] for path in EXAMPLES} == {"ae", "vae", "gan", "aegan"}


# raygen train --spec


def train(tmp_path: Path, *arguments: str) -> Any:
    runner = CliRunner(env={"RAYGEN_STORAGE": str(tmp_path / "runs"), "RAY_ADDRESS": ""})
    return runner.invoke(app, ["train", *arguments])


def refusal(tmp_path: Path, *arguments: str) -> str:
    result = train(tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert not (tmp_path / "runs").exists()
    return str(line)


@every_example
def test_an_example_is_a_job(path: Path, tmp_path: Path) -> None:
    result = train(tmp_path, "--spec", str(path), "--dry-run")
    assert result.exit_code == 0, result.stderr
    model, settings = read_file(path)
    assert json.loads(result.stdout)["spec"] == TrainSpec.create(model, settings).model_dump(mode="json")


def test_options_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        "seed = 4\n[model]\nname = 'gan'\nhidden = [64]\n[optimizer]\nlr = 0.5\nbeta1 = 0.3\n[resources]\ncpus = 1\n"
    )
    over = ("--epochs", "3", "--set", "model.latent_dim=7", "--set", "optimizer.name=sgd", "--data", "./photos")
    result = train(tmp_path, "--spec", str(file), *over, "--dry-run")
    assert result.exit_code == 0, result.stderr
    spec = TrainSpec.model_validate(json.loads(result.stdout)["spec"])
    settings = {"seed": 4, "model.hidden": 64, "resources.cpus": 1, "training.epochs": 3, "model.latent_dim": 7}
    source = str(Path("photos").absolute())
    optimizer = {"optimizer.name": "sgd", "optimizer.lr": 0.5}
    assert spec == TrainSpec.create("gan", {**settings, **optimizer, "data.source": source})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model]\nname = 'vea'\n", "there is no model 'vea'; did you mean 'vae'?"),
        ("[model]\nhidden = 3\n", "model.name: name a model"),
        ("model = 'vae'\n", "model.name: name a model"),
        ("[model]\nname = 3\n", "model.name: name a model"),
        ("[model]\nname = 'vae'\nlatentdim = 3\n", "did you mean 'model.latent_dim'?"),
        ("version = 2\n[model]\nname = 'vae'\n", "version: it says which Raygen made the spec"),
        ("[model\n", "not valid TOML"),
    ],
)
def test_a_file_that_is_no_spec_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    message = refusal(tmp_path, "--spec", str(file))
    assert f"{file}: " in message
    assert said in message


def test_what_does_not_go_with_a_file(tmp_path: Path) -> None:
    file = str(EXAMPLES[0])
    assert "leave out vae" in refusal(tmp_path, "vae", "--spec", file)
    assert f"model.name: {file} says that the model is 'ae" in refusal(
        tmp_path, "--spec", file, "--set", "model.name=vae"
    )
    assert "leave out --spec" in refusal(tmp_path, "--resume", "RUN", "--spec", file)
    assert "no.toml: cannot be read as a spec: No such file" in refusal(tmp_path, "--spec", str(tmp_path / "no.toml"))
