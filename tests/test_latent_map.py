"""Where a latent comes to lie, and what is drawn there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raygen import latent_map, models
from raygen.errors import DataError, RunError
from raygen.models._base import ImageShape
from raygen.results import TrainedModel
from raygen.spec import TrainSpec


def clusters() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    return 10 * torch.eye(5)[labels] + torch.randn(60, 5, generator=random), labels


def test_pca_is_that_of_the_textbook() -> None:
    latents, _ = clusters()
    plane = latent_map.project(latents, None)
    centred = latents.double().numpy() - latents.double().numpy().mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(plane.points), np.abs(centred @ directions[:2].T), atol=1e-9)
    parts = singular**2 / (singular**2).sum()
    assert plane.axes[1] == f"second principal component, {parts[1]:.0%} of the variance"
    assert plane.origin == f"PCA, with {parts[:2].sum():.0%} of the variance"


def test_tsne_keeps_neighbours_and_is_the_same_each_time() -> None:
    latents, labels = clusters()
    plane = latent_map.project(latents, "tsne")
    assert plane.origin == "t-SNE, perplexity 19.7"
    distances = torch.cdist(torch.from_numpy(plane.points), torch.from_numpy(plane.points)).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(dim=1)] == labels).all()
    assert (latent_map.project(latents, "tsne").points == plane.points).all()


def test_two_latents_lie_where_they_are() -> None:
    latents, _ = clusters()
    assert (latent_map.project(latents[:, :2], None).points == latents[:, :2].numpy()).all()
    turned = latent_map.project(latents[:, :2], "pca").points
    assert abs(np.corrcoef(turned.T)[0, 1]) < 1e-9


def test_what_cannot_be_drawn_is_refused() -> None:
    latents, _ = clusters()
    with pytest.raises(DataError, match="5 images or more, not 4: add --split all"):
        latent_map.project(latents[:4], None)
    with pytest.raises(RunError, match="not finite"):
        latent_map.project(latents / 0, None)
    with pytest.raises(RunError, match="the same latents"):
        latent_map.project(torch.ones(9, 3), None)
    for latent_dim, decoded, reason in ((1, False, "one latent has no plane"), (3, True, "two latents, not 3")):
        with pytest.raises((RunError, latent_map.SpecError), match=reason):
            latent_map.check(untrained(latent_dim), None, decoded=decoded)


def untrained(latent_dim: int, channels: int = 1) -> TrainedModel:
    spec = TrainSpec.create("ae", {"model.latent_dim": latent_dim, "model.hidden": [8]})
    torch.manual_seed(0)
    model = models.find("ae")(spec.model, ImageShape(channels, 8, 12))
    return TrainedModel(model.eval().requires_grad_(False), spec, {})


@pytest.mark.parametrize("channels", [1, 3])
def test_every_place_shows_what_it_decodes_to(channels: int) -> None:
    trained = untrained(2, channels)
    plane = latent_map.project(clusters()[0][:, :2], None)
    sheet = latent_map.decode(trained, plane)
    assert sheet.shape == (16 * 8, 16 * 12, channels)
    left, right, bottom, top = plane.bounds
    for row, column in ((0, 0), (3, 12), (15, 15)):
        place = [left + (right - left) * (column + 0.5) / 16, top - (top - bottom) * (row + 0.5) / 16]
        expected = trained.model.decode(torch.tensor([place]))[0]  # type: ignore[operator]
        tile = torch.from_numpy(sheet[row * 8 : row * 8 + 8, column * 12 : column * 12 + 12]).permute(2, 0, 1) / 255
        torch.testing.assert_close(tile, expected, atol=0.003, rtol=0)


@pytest.mark.parametrize("classes", [0, 3, 15, 60])
def test_classes_have_colours(tmp_path: Path, classes: int) -> None:
    latents, _ = clusters()
    labels = torch.arange(60) % classes if classes else None
    black = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    latent_map.save(latent_map.project(latents, None), black, labels, None, "latents", tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        pixels = np.asarray(picture.convert("HSV")).reshape(-1, 3)
    hues = pixels[(pixels[:, 1] > 100) & (pixels[:, 2] > 100), 0]
    found = np.count_nonzero(np.bincount(hues // 8, minlength=32) > 20)
    assert found >= min(max(classes, 1), 5) - 1
    assert (found <= 2) == (classes == 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_some_images_lie_on_their_points(tmp_path: Path, channels: int) -> None:
    latents, labels = clusters()
    plane = latent_map.project(latents, None)
    images = torch.zeros(60, channels, 8, 12, dtype=torch.uint8)
    latent_map.save(plane, images, labels, None, "latents", tmp_path / "black.png")
    images[latent_map.apart(plane)] = 255
    latent_map.save(plane, images, labels, None, "latents", tmp_path / "white.png")
    dark = {
        name: np.count_nonzero(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) < 30)
        for name in ("black", "white")
    }
    thumbnail_pixels = (20 / 72 * 120) * (20 / 72 * 120 * 8 / 12)
    drawn = (dark["black"] - dark["white"]) / thumbnail_pixels
    assert drawn == pytest.approx(len(latent_map.apart(plane)), rel=0.25), "so many images were black, and are white"


def test_thumbnails_are_apart_and_no_place_for_one_is_left() -> None:
    plane = latent_map.project(torch.randn(400, 2, generator=torch.Generator().manual_seed(0)), None)
    left, right, bottom, top = plane.bounds
    places = plane.points / (right - left, top - bottom)
    taken = latent_map.apart(plane)
    distances = np.abs(places[:, None] - places[None, taken]).max(axis=2)
    between = distances[taken] + np.eye(len(taken))
    assert between.min() >= latent_map.THUMBNAIL_DISTANCE
    assert distances.min(axis=1).max() < latent_map.THUMBNAIL_DISTANCE
    assert 20 < len(taken) < 100
