"""`raygen restore` on really trained models, and what it says of their gain."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from typer.testing import CliRunner, Result

import raygen
from cli.main import app
from raygen import corruption, data, models, restoration
from raygen.data import DataOptions
from raygen.errors import DataError
from raygen.models._base import ImageShape
from raygen.results import TrainedModel
from raygen.spec import TrainSpec


def run(runner: CliRunner, line: str) -> Result:
    result = runner.invoke(app, line.split())
    assert result.exit_code == 0, result.output
    return result


def refusal(runner: CliRunner, line: str) -> str:
    result = runner.invoke(app, line.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def write(folder: str, images: Tensor, names: list[str]) -> None:
    for name, image in zip(names, images, strict=True):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(path)


def pixels(path: str) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).float().div_(255)


@pytest.fixture
def clean() -> Tensor:
    return data.load(DataOptions()).validation.images.float().div(255)


@pytest.fixture
def damaged(clean: Tensor) -> Tensor:
    found = corruption.corrupted_for_judging(DataOptions(corruption="noise"), clean, seed=9)
    assert found is not None
    return found


def test_damaged_images_come_back_restored_under_their_names(
    trained: CliRunner, trained_storage: Path, clean: Tensor, damaged: Tensor
) -> None:
    names = [f"{number:03}.bmp" for number in range(len(damaged) - 1)] + ["deeper/last.bmp"]
    write("damaged", damaged, names)
    write("originals", clean, [name.replace("bmp", "png") for name in names])
    result = run(trained, "restore noisy --data damaged -o restored --clean originals")
    assert f"{len(names)} images restored by trial 1 (val_mse" in result.stderr
    assert len([path for path in Path("restored").rglob("*") if path.is_file()]) == len(names)
    model = raygen.load("noisy", storage=trained_storage).model
    with torch.no_grad():
        expected = model.decode(model.encode(pixels("damaged/deeper/last.bmp")[None, None]))[0, 0]
    torch.testing.assert_close(pixels("restored/deeper/last.png"), expected, atol=0.51 / 255, rtol=0)
    rows = {line.split("PSNR")[0].strip(): line.split("PSNR")[1].split() for line in result.stdout.splitlines()}
    assert list(rows) == ["damaged", "median 3×3", "restored"]
    psnr, ssim = ({name: float(row[column]) for name, row in rows.items()} for column in (0, 3))
    seen = torch.stack([pixels(f"damaged/{name}") for name in names])[:, None]
    errors = (seen - clean).square().flatten(1).mean(dim=1)
    assert psnr["damaged"] == pytest.approx(-10 * errors.log10().mean().item(), abs=0.02)
    for values in (psnr, ssim):
        assert values["restored"] > values["median 3×3"]
        assert values["restored"] > values["damaged"]


def test_images_of_a_lower_resolution_are_enlarged(trained: CliRunner, clean: Tensor) -> None:
    """As they are, or with the pixels repeated: it is the same."""
    small = corruption.downsampled(clean[:5], 2)
    names = [f"{number}.png" for number in range(5)]
    write("small", small, names)
    write("repeated", corruption.enlarged(small, 8, 8), names)
    write("originals", clean[:5], names)
    said = [
        run(trained, f"restore small --data {folder} -o from-{folder} --clean originals").stdout
        for folder in ("small", "repeated")
    ]
    assert said[0] == said[1]
    assert "bicubic" in said[0]
    for name in names:
        assert torch.equal(pixels(f"from-small/{name}"), pixels(f"from-repeated/{name}"))
        assert pixels(f"from-small/{name}").shape == (8, 8)


def test_each_of_two_formats_is_restored_and_compared_with_its_own(
    trained: CliRunner, clean: Tensor, damaged: Tensor
) -> None:
    names = ["a.bmp", "a.png", "b.bmp"]
    write("damaged", damaged[:3], names)
    write("originals", clean[:3], [*names[:2], "b.png"])
    write("first", damaged[:1], ["a.bmp"])
    result = run(trained, "restore noisy --data damaged -o restored --clean originals")
    run(trained, "restore noisy --data first -o alone")
    assert sorted(os.listdir("restored")) == ["a.bmp.png", "a.png", "b.png"]
    assert torch.equal(pixels("restored/a.bmp.png"), pixels("alone/a.png"))
    seen = torch.stack([pixels(f"damaged/{name}") for name in names])[:, None]
    errors = (seen - clean[:3]).square().flatten(1).mean(dim=1)
    told = float(result.stdout.splitlines()[0].split("PSNR")[1].split()[0])
    assert told == pytest.approx(-10 * errors.log10().mean().item(), abs=0.03)


def test_one_lower_resolution_is_told_from_images_to_be_resized(
    trained_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: Tensor
) -> None:
    monkeypatch.chdir(tmp_path)
    model = raygen.load("small", storage=trained_storage)
    sized = replace(model, spec=model.spec.with_settings({"data.image_size": 8}))
    write("small", corruption.downsampled(clean[:2], 2), ["a.png", "b.png"])
    write("both", corruption.downsampled(clean[:1], 2), ["a.png"])
    write("both", clean[1:2], ["b.png"])
    assert torch.equal(raygen.restore(sized, "small").images, raygen.restore(model, "small").images)
    with pytest.raises(DataError, match="both holds images of 4×4 pixels, which are enlarged as in the training"):
        raygen.restore(sized, "both")


def test_grey_images_are_restored_by_a_model_of_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: Tensor
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = TrainSpec.create("ae", {"data.corruption": "noise", "model.hidden": [8], "model.latent_dim": 4})
    torch.manual_seed(0)
    model = models.find("ae")(spec.model, ImageShape(3, 8, 8)).eval().requires_grad_(False)
    write("grey", clean[:2], ["a.png", "b.png"])
    images = raygen.restore(TrainedModel(model, spec, {}), "grey").images
    seen = torch.stack([pixels(f"grey/{name}.png") for name in "ab"])[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(images, model.decode(model.encode(seen)))


def test_what_cannot_be_restored_is_refused_and_leaves_nothing(trained: CliRunner, damaged: Tensor) -> None:
    names = ["a.png", "b.png"]
    write("damaged", damaged[:2], names)
    write("full", damaged[:1], ["a.png"])
    write("two", damaged[:2], ["a.png", "a.bmp"])
    write("single", damaged[:1], ["a.tiff"])
    Path("broken").mkdir()
    Path("broken/a.png").touch()
    write("large", damaged[:2, :, :7], names)
    write("others", damaged[:2], ["a.png", "c.png"])
    Path("none").mkdir()
    write("mixed", damaged[:1], ["a.png"])
    write("mixed", damaged[1:2, :, :4], ["b.png"])
    before = sorted(os.listdir())
    for line, said in {
        "noisy --data damaged -o full": "the folder is not empty; name a new one",
        "gan --data damaged -o out": "gan has no encoder",
        "ae --data damaged -o out": "trained on clean images, and restores none",
        "noisy --data nowhere -o out": "nowhere is no folder of images",
        "noisy --data none -o out": "holds no images",
        "noisy --data single -o out --clean two": "two holds several clean images of the name a",
        "noisy --data broken -o out": "cannot decode the image broken/a.png (unknown format); repair it or remove it",
        "noisy --data large -o out": "holds grey images of 7×8 pixels, the model restores images of 8×8 with 1 ch",
        "noisy --data damaged -o out --clean others": "holds no clean image of the name b",
        "noisy --data mixed -o out": "holds images of different sizes, the model restores images of 8×8 with 1 ch",
    }.items():
        assert said in refusal(trained, f"restore {line}")
    assert sorted(os.listdir()) == before


def test_the_card_of_such_a_model_says_what_it_saw(trained: CliRunner) -> None:
    result = run(trained, "evaluate noisy --split test --metrics psnr,ssim")
    assert "test images of digits, each encoded after Gaussian noise of σ 0.3" in result.stderr
    assert {"psnr", "ssim"} <= set(result.stdout.split())
    said = refusal(trained, "compare noisy ae --metrics mse")
    assert "one sees Gaussian noise of σ 0.3, the other clean images" in said


def test_the_filters_are_the_well_known_ones() -> None:
    images = torch.rand(3, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, 3, 3), mode="nearest")
    assert np.array_equal(restoration.median(images).numpy(), expected)
    small = corruption.downsampled(images, 4)
    enlarged = restoration.bicubic(corruption.enlarged(small, 12, 8), 4)
    plane = Image.fromarray(small[1, 2].numpy()).resize((8, 12), Image.Resampling.BICUBIC)
    torch.testing.assert_close(enlarged[1, 2], torch.from_numpy(np.asarray(plane).copy()).clamp(0, 1))
