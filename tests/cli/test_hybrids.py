"""Autoencoders beside GANs as they are typed: a generator that begins as a decoder, a hybrid without a prior."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from raygen.record.run import Run
from raygen.storage import Storage
from tests.cli.conftest import best_folder

# The family's defaults are built like the decoder of an autoencoder with convolutions and 64 latents.
FROM = ["train", "gan", "--from"]


@pytest.mark.parametrize(
    ("named", "source"),
    [
        ("shapes", "shapes"),
        ("sha", "shapes"),
        ("shapes/best/1", "shapes/best/1"),
        ("taken/1", "taken/1"),
        ("taken/1/model.safetensors", "taken/1/model.safetensors"),
    ],
)
def test_from_takes_what_names_a_model(
    named: str, source: str, trained: CliRunner, trained_storage: Path, tmp_path: Path
) -> None:
    best_folder(trained_storage, "shapes", tmp_path / "taken")
    result = trained.invoke(app, [*FROM, named, "--dry-run"])
    assert result.exit_code == 0, result.stderr
    warm_start = json.loads(result.stdout)["spec"]["warm_start"]
    assert warm_start["source"] == source
    assert len(warm_start["digest"]) == 16
    assert f"training gan on digits, from the decoder in {source}, " in result.stderr


def test_a_spec_from_a_file_starts_from_a_decoder_too(trained: CliRunner) -> None:
    Path("own.toml").write_text("seed = 4\n[model]\nname = 'gan'\n[training]\nepochs = 2\n")
    result = trained.invoke(app, ["train", "--spec", "own.toml", "--from", "shapes", "--dry-run"])
    spec = json.loads(result.stdout)["spec"]
    assert spec["warm_start"]
    assert (spec["seed"], spec["training"]["epochs"]) == (4, 2)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("gan --from nothing", "there is no run 'nothing'"),
        ("gan --from untrained", "untrained has no best model 1 (state: waiting)"),
        ("gan --from aegan", "holds a model of aegan; --from takes a run of ae, vae or vaegan"),
        ("vae --from shapes", "--from is for gan, whose generator begins as a decoder; leave it out with vae"),
        ("gan --from ae", "type --set model.arch=mlp --set model.latent_dim=6 --set 'model.decoder_hidden=[64]'"),
        ("--resume shapes --from ae", "leave out --from"),
    ],
)
def test_what_a_gan_cannot_start_from(typed: str, said: str, trained: CliRunner) -> None:
    result = trained.invoke(app, ["train", *typed.split(), "--dry-run"])
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert said in line


def test_a_hybrid_without_a_prior_is_treated_as_an_autoencoder(trained: CliRunner, trained_storage: Path) -> None:
    assert not Run(Storage(trained_storage), "critic").look().can_sample
    refused = trained.invoke(app, ["sample", "critic", "-o", "grid.png"])
    assert refused.exit_code == 2
    assert "cannot be sampled: it has no prior over its latents; --prior gmm fits one" in refused.stderr
    assert trained.invoke(app, ["sample", "critic", "--prior", "gmm", "-o", "grid.png"]).exit_code == 0
    assert trained.invoke(app, ["interpolate", "critic", "-o", "rows.png"]).exit_code == 0
    told = trained.invoke(app, ["evaluate", "critic", "--metrics", "mse,frechet"])
    assert "aegan cannot be judged by val_frechet; it can by" in told.stderr
    assert "and with --prior gmm by that too" in told.stderr
    card = trained.invoke(app, ["evaluate", "critic", "-o", "json"])
    assert card.exit_code == 0, card.stderr
    values = json.loads(card.stdout)["values"]
    assert "val_mse" in values
    assert "val_frechet" not in values
