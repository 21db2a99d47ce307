"""What a model that restores images sees of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from raygen import corruption
from raygen.data import DataOptions, Dataset
from raygen.errors import SpecError
from raygen.models._base import ImageShape, Noise
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU
from raygen.training.evaluation import held_out_images
from raygen.training.loop import fit
from raygen.training.step import build_model

IMAGES = torch.rand(203, 3, 12, 9, generator=torch.Generator().manual_seed(0))


def damaged(rows: slice = slice(None), step: int = 0, **options: Any) -> torch.Tensor:
    noise = Noise(seed=5, step=step, batch_size=len(IMAGES), rows=rows, generator=torch.Generator())
    found = corruption.corrupted(DataOptions(**options), IMAGES[rows], noise)
    assert found is not None
    return found


KINDS = [{"corruption": "noise"}, {"corruption": "mask"}, {"corruption": "downsample"}]
every_kind = pytest.mark.parametrize("options", KINDS, ids=lambda options: str(options["corruption"]))


@every_kind
def test_the_parts_of_a_batch_are_corrupted_as_the_whole_is(options: dict[str, Any]) -> None:
    whole = damaged(**options)
    assert whole.shape == IMAGES.shape
    assert 0 <= whole.min() < whole.max() <= 1
    assert torch.equal(torch.cat([damaged(slice(0, 70), **options), damaged(slice(70, 203), **options)]), whole)
    assert torch.equal(damaged(step=1, **options), whole) == (options["corruption"] == "downsample")


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    noise = Noise(seed=5, step=0, batch_size=50, rows=slice(None), generator=torch.Generator())
    grey = torch.full((50, 1, 28, 28), 0.5)
    found = corruption.corrupted(DataOptions(corruption="noise", corruption_std=0.1), grey, noise)
    assert found is not None
    assert found.std().item() == pytest.approx(0.1, rel=0.02)
    assert found.mean().item() == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize(("part", "height", "width"), [(0.5, 8, 6), (0.001, 1, 1), (0.999, 11, 8)])
def test_a_mask_is_one_black_block_at_places_that_differ(part: float, height: int, width: int) -> None:
    """Not all of an image, nor nothing."""
    found = damaged(corruption="mask", corruption_mask=part)
    hidden = found != IMAGES
    assert torch.equal(found[~hidden], IMAGES[~hidden])
    assert (found[hidden] == 0).all()
    places = set()
    for image in hidden.any(dim=1):
        rows, columns = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
        assert (len(rows), len(columns)) == (height, width)
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        places.add((rows[0].item(), columns[0].item()))
    tops, lefts = ({place[axis] for place in places} for axis in (0, 1))
    assert tops == set(range(12 - height + 1)), "all that are possible"
    assert lefts == set(range(9 - width + 1))


def test_lower_resolution_keeps_the_means_of_blocks() -> None:
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    noise = Noise(seed=0, step=0, batch_size=4, rows=slice(None), generator=torch.Generator())
    found = corruption.corrupted(DataOptions(corruption="downsample"), images, noise)
    assert found is not None
    means = images.view(4, 1, 7, 4, 7, 4).mean(dim=(3, 5))
    torch.testing.assert_close(found, means.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))


@every_kind
def test_judging_has_one_corruption_of_each_image(options: dict[str, Any]) -> None:
    images = torch.rand(1203, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    first, again, other = (
        corruption.corrupted_for_judging(DataOptions(**options), images, seed) for seed in (0, 0, 1)
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (options["corruption"] == "downsample")
    assert corruption.corrupted_for_judging(DataOptions(), images, 0) is None


def test_epochs_are_judged_on_corrupted_inputs_against_clean_images(digits: Dataset, tmp_path: Path) -> None:
    settings = {"data.corruption": "mask", "training.epochs": 1, "evaluation.metrics": ["val_psnr"]}
    spec = TrainSpec.create("ae", settings)
    [epoch] = fit(spec, digits, tmp_path / "checkpoint")
    model: Any = build_model(spec, ImageShape(*digits.shape), CPU)
    model.load_state_dict(checkpoint.read_weights(tmp_path / "checkpoint", prefix=checkpoint.BEST))
    images = held_out_images(digits.validation.images, spec.evaluation, CPU)
    inputs = corruption.corrupted_for_judging(spec.data, images, spec.evaluation.seed)
    with torch.no_grad():
        errors = (model.decode(model.encode(inputs)) - images).square().flatten(1).mean(dim=1)
    assert epoch.metrics["val_mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert epoch.metrics["val_psnr"] == pytest.approx(-10 * errors.log10().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("gan", {"data.corruption": "noise"}, "data.corruption: gan cannot restore images"),
        (
            "aegan",
            {"data.corruption": "mask", "model.reconstruction": 0, "model.judges": "pairs"},
            "with model.reconstruction=0",
        ),
        ("ae", {"data.corruption": "blur"}, "data.corruption: input should be 'noise', 'mask' or 'downsample'"),
        ("ae", {"data.corruption_factor": 3}, "data.corruption_factor: input should be 2 or 4"),
        ("ae", {"data.corruption_mask": 1.0}, "data.corruption_mask: input should be less than 1"),
        ("ae", {"data.corruption_std": 0.0}, "data.corruption_std: input should be greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(model: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        TrainSpec.create(model, settings)
    assert "\n" not in str(caught.value)
