"""The functions of the package over really trained small models: they return what the commands write."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import raygen
from cli.main import app
from raygen.errors import DataError, RunError, SpecError
from raygen.record.run import Run
from raygen.storage import Storage


def typed(runner: CliRunner, command: str) -> str:
    result = runner.invoke(app, command.split())
    assert result.exit_code == 0, result.output
    return result.stdout


def in_bytes(images: torch.Tensor) -> list[int]:
    return (255 * images).round().to(torch.uint8).flatten().tolist()


@pytest.fixture(autouse=True)
def storage(trained: CliRunner, trained_storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_STORAGE", str(trained_storage))


def test_samples(trained: CliRunner) -> None:
    typed(trained, "sample vae --n 20 --seed 3 -o samples.npz")
    images = raygen.sample("vae", 20, seed=3)
    assert images.shape == (20, 1, 8, 8)
    with np.load("samples.npz") as found:
        assert in_bytes(images) == found["images"].flatten().tolist()
    assert torch.equal(raygen.load("vae").sample(20, seed=3), images)
    mixed = raygen.sample("ae", 5, prior="gmm", components=3)
    assert torch.equal(raygen.load("ae", prior="gmm", components=3).sample(5), mixed)
    assert torch.equal(raygen.sample(raygen.load("ae"), 5, prior="gmm", components=3), mixed)
    with pytest.raises(RunError, match="--prior gmm fits one"):
        raygen.sample("ae", 5)
    with pytest.raises(SpecError, match="--components is for a mixture"):
        raygen.sample("ae", 5, components=3)


def test_a_run_that_was_returned_stands_for_its_best_model(trained_storage: Path) -> None:
    storage = Storage(trained_storage)
    run = Run.open("vae", storage)
    assert torch.equal(raygen.load(run).sample(3), raygen.load("vae").sample(3))
    assert torch.equal(raygen.sample(run, 3), raygen.sample("vae", 3))
    protocol = raygen.Protocol(images=20)
    runs = [run, Run.open("ae", storage)]
    assert (
        raygen.compare(runs, protocol, metrics=["mse"]).as_json()
        == raygen.compare(["vae", "ae"], protocol, metrics=["mse"]).as_json()
    )


def test_latents_and_back(trained: CliRunner) -> None:
    typed(trained, "encode ae --split test -o latents.npz")
    encoded = raygen.encode("ae", split="test")
    with np.load("latents.npz") as found:
        assert found["latents"].tolist() == encoded.values.tolist()
        assert encoded.chosen.labels is not None
        assert found["labels"].tolist() == encoded.chosen.labels.tolist()
    typed(trained, "decode ae latents.npz -o images.npz")
    images = raygen.decode("ae", encoded.values)
    assert torch.equal(raygen.decode("ae", "latents.npz"), images)
    assert torch.equal(raygen.decode("ae", encoded), images)
    assert torch.equal(raygen.decode("ae", encoded.values.numpy()), images)
    assert torch.equal(raygen.decode("ae", encoded.values.requires_grad_()), images)
    with np.load("images.npz") as found:
        assert in_bytes(images) == found["images"].flatten().tolist()


def test_reconstructions_and_interpolations() -> None:
    images, rebuilt, source = raygen.reconstruct("vae", 12)
    assert (images.shape, rebuilt.shape, source) == ((12, 1, 8, 8), (12, 1, 8, 8), "digits")
    assert (images - rebuilt).square().mean() < images.var()
    rows = raygen.interpolate("vae", rows=3, steps=5)
    assert rows.shape == (3, 5, 1, 8, 8)
    changes = (rows[:, 1:] - rows[:, :-1]).abs().mean(dim=(1, 2, 3, 4))
    assert (changes < (rows[:, 0] - rows[:, -1]).abs().mean(dim=(1, 2, 3))).all(), "small steps from end to end"


def test_scores(trained: CliRunner) -> None:
    typed(trained, "score ae --split test --false-alarms 0.1 -o scores.csv")
    scores = raygen.score("ae", split="test", false_alarms=0.1)
    with open("scores.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line[scores.name]) for line in lines] == scores.values.tolist()
    assert [line["beyond_threshold"] == "1" for line in lines] == scores.beyond_threshold.tolist()
    assert not raygen.score("ae").beyond_threshold.any(), "without a threshold nothing is beyond it"


def test_restored_images(trained: CliRunner) -> None:
    clean, _, _ = raygen.reconstruct("noisy", 6)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for folder, images in (("clean", clean), ("damaged", (clean + 0.3 * noise).clamp(0, 1))):
        Path(folder).mkdir()
        for number, image in enumerate(images):
            Image.fromarray((255 * image[0]).round().to(torch.uint8).numpy()).save(f"{folder}/{number}.png")
    typed(trained, "restore noisy --data damaged -o restored")
    restored = raygen.restore("noisy", "damaged", clean="clean")
    for name, image in zip(restored.names, restored.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(Path("restored") / name)).flatten(), in_bytes(image))
    damaged, _, ours = restored.qualities
    assert ours.psnr_db > damaged.psnr_db


def test_judgements(trained: CliRunner) -> None:
    card = raygen.evaluate("vae", raygen.Protocol(images=50, seed=2), metrics=["mse", "val_elbo"])
    assert list(card.values) == ["val_mse", "val_elbo"]
    printed = json.loads(typed(trained, "evaluate vae --images 50 --seed 2 --metrics mse,elbo -o json"))
    assert card.model_dump(mode="json") == printed
    everything = raygen.evaluate("vae", raygen.Protocol(images=50))
    assert not set(everything.values) & set(everything.left_out)
    assert {"val_elbo", "val_frechet"} < set(everything.values)
    comparison = raygen.compare(["ae", "vae"], raygen.Protocol(images=50), metrics=["mse"])
    assert comparison.as_json() == json.loads(typed(trained, "compare ae vae --images 50 --metrics mse -o json"))
    with pytest.raises(SpecError, match="two different runs"):
        raygen.compare(["ae", "ae"])


def test_what_is_not_there_is_told_as_at_the_command_line() -> None:
    with pytest.raises(RunError, match="no run 'nobody'"):
        raygen.load("nobody")
    with pytest.raises(RunError, match="gan has no encoder"):
        raygen.encode("gan")
    for wrong, said in (
        (lambda: raygen.sample("vae", 0), "1 sample or more is drawn, not 0"),
        (lambda: raygen.reconstruct("vae", -5), "1 image or more is reconstructed, not -5"),
        (lambda: raygen.load("ae", prior="kde"), "no prior 'kde' to fit; priors: gmm"),
        (lambda: raygen.load("ae", prior="gmm", components=0), "1 component or more, not 0"),
        (lambda: raygen.encode("ae", split="valid"), "no part 'valid'; parts: train, validation, test, all"),
        (lambda: raygen.evaluate("ae", raygen.Protocol(split="train")), "no such part 'train'; parts: valid"),
        (lambda: raygen.evaluate("ae", raygen.Protocol(reference="all")), "no such part 'all'; parts: train"),
        (lambda: raygen.evaluate("ae", raygen.Protocol(images=-50)), "2 validation images or more, not -50"),
        (lambda: raygen.decode("ae", torch.full((3, 6), 1e300, dtype=torch.float64)), "not finite"),
    ):
        with pytest.raises((SpecError, DataError), match=said):
            wrong()
    with pytest.raises(TypeError):
        raygen.sample("vae", number=3)  # type: ignore[call-arg]
