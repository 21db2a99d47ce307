"""The pictures of what a model makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raygen import corruption, pictures
from raygen.data import Dataset
from raygen.models._base import ImageShape, Model
from raygen.spec import TrainSpec
from raygen.training import checkpoint, drawing
from raygen.training.distributed import ALONE, CPU
from raygen.training.loop import fit
from raygen.training.step import Training, build_model

SMALL = {"model.arch": "mlp", "model.hidden": [32], "model.latent_dim": 8, "training.batch_size": 100}


def spec_of(model: str, **settings: Any) -> TrainSpec:
    return TrainSpec.create(model, {**SMALL, **{name.replace("__", "."): value for name, value in settings.items()}})


def cells(picture: Image.Image) -> torch.Tensor:
    """The images of an 8×8 picture of digits, uint8 [64, 8, 8]: they are enlarged four times, with a border of 1."""
    pixels = torch.from_numpy(np.array(picture))
    assert pixels.shape == (8 * 34, 8 * 34)
    return pixels.view(8, 34, 8, 34).transpose(1, 2)[:, :, 1:-1:4, 1:-1:4].reshape(64, 8, 8)


def drawn(model: str, digits: Dataset, **settings: Any) -> Image.Image:
    spec = spec_of(model, **settings)
    built = build_model(spec, ImageShape(*digits.shape), CPU)
    return drawing.picture(built, digits.validation.images, spec)


@pytest.mark.parametrize("model", ["vae", "gan", "vaegan"])
def test_samples_are_from_the_same_latents_always(model: str, digits: Dataset) -> None:
    spec = spec_of(model)
    built: Any = build_model(spec, ImageShape(*digits.shape), CPU)
    first = drawing.picture(built, digits.validation.images, spec)
    torch.manual_seed(5)
    assert drawing.picture(built, digits.validation.images[7:], spec).tobytes() == first.tobytes()
    latents = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(cells(first), pictures.in_bytes(built.sample(latents))[:, 0])


def test_without_a_prior_it_shows_fixed_images_above_their_reconstructions(digits: Dataset) -> None:
    rows = cells(drawn("ae", digits)).view(4, 2, 8, 8, 8)
    assert torch.equal(rows[:, 0].flatten(0, 1), digits.validation.images[:32, 0])
    model: Any = build_model(spec_of("ae"), ImageShape(*digits.shape), CPU)
    with torch.no_grad():
        rebuilt = model.decode(model.encode(digits.validation.images[:32].float() / 255))
    assert torch.equal(rows[:, 1].flatten(0, 1), pictures.in_bytes(rebuilt)[:, 0])


def test_a_model_that_restores_is_shown_with_what_it_sees(digits: Dataset) -> None:
    options = {"data__corruption": "mask", "data__corruption_mask": 0.25}
    seen = cells(drawn("ae", digits, **options)).view(4, 2, 8, 8, 8)[:, 0].flatten(0, 1)
    clean = digits.validation.images[:32]
    expected = corruption.corrupted_for_judging(spec_of("ae", **options).data, clean.float() / 255, 0)
    assert expected is not None
    assert torch.equal(seen, pictures.in_bytes(expected)[:, 0])
    assert not torch.equal(seen, clean[:, 0])


def test_few_images_come_again(digits: Dataset) -> None:
    spec = spec_of("ae")
    built = build_model(spec, ImageShape(*digits.shape), CPU)
    rows = cells(drawing.picture(built, digits.validation.images[:3], spec)).view(4, 2, 8, 8, 8)
    assert torch.equal(rows[:, 0].flatten(0, 1), digits.validation.images[:3, 0].repeat(11, 1, 1)[:32])


def test_a_training_shows_the_model_that_was_judged_before_it_yields_the_epoch(digits: Dataset, path: Path) -> None:
    """The moving average, not the weights that are trained; by one process of all."""
    spec = spec_of("vae", training__epochs=3, training__ema_half_life_images=2000)
    shown: list[tuple[int, dict[str, torch.Tensor]]] = []

    def look(epoch: int, model: Model) -> None:
        shown.append((epoch, {name: tensor.clone() for name, tensor in model.state_dict().items()}))

    for epoch in fit(spec, digits, path, on_judged=look):
        assert shown[-1][0] == epoch.epoch
    assert [number for number, _ in shown] == [1, 2, 3]
    shape = ImageShape(*digits.shape)
    restored = Training(spec, build_model(spec, shape, CPU), steps=42, group=ALONE)
    checkpoint.restore(path, restored.trained)
    for name, tensor in restored.judged.state_dict().items():
        assert torch.equal(shown[-1][1][name], tensor)
    assert any(not torch.equal(shown[-1][1][name], tensor) for name, tensor in restored.model.state_dict().items())
