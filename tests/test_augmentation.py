"""Training images that are changed at random."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from raygen import augmentation
from raygen.data import DataOptions, Dataset
from raygen.errors import SpecError
from raygen.models._base import Noise
from raygen.spec import TrainSpec
from raygen.training.batches import Batches
from raygen.training.distributed import ALONE
from tests.batches import batches_from

IMAGES = torch.rand(203, 3, 12, 9, generator=torch.Generator().manual_seed(0))
CHOICES: list[tuple[str, ...]] = [("flip",), ("shift",), ("crop",), ("flip", "shift", "crop")]
every_choice = pytest.mark.parametrize("augment", CHOICES, ids="+".join)


def changed(
    augment: tuple[str, ...], images: Tensor = IMAGES, rows: slice = slice(None), step: int = 0, **options: Any
) -> Tensor:
    noise = Noise(seed=5, step=step, batch_size=len(images), rows=rows, generator=torch.Generator())
    return augmentation.augmented(DataOptions(augment=augment, **options), images[rows], noise)


@every_choice
def test_the_parts_of_a_batch_are_changed_as_the_whole_is(augment: tuple[str, ...]) -> None:
    whole = changed(augment)
    assert whole.shape == IMAGES.shape
    assert 0 <= whole.min() < whole.max() <= 1
    assert torch.equal(torch.cat([changed(augment, rows=slice(0, 70)), changed(augment, rows=slice(70, 203))]), whole)
    assert torch.equal(changed(augment), whole)
    assert not torch.equal(changed(augment, step=1), whole)


def test_without_a_choice_images_stay_as_they_are() -> None:
    assert changed(()) is IMAGES or torch.equal(changed(()), IMAGES)


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    found = changed(("flip",))
    kept = (found == IMAGES).flatten(1).all(dim=1)
    mirrored = (found == IMAGES.flip(3)).flatten(1).all(dim=1)
    assert (kept ^ mirrored).all()
    assert 70 < mirrored.sum() < 133


@pytest.mark.parametrize(("part", "down", "across"), [(0.1, 1, 1), (0.25, 3, 2), (0.5, 6, 4)])
def test_shifts_are_by_whole_pixels_and_repeat_the_edge(part: float, down: int, across: int) -> None:
    """Of 12×9 pixels; all shifts that are possible come up, on both axes."""
    found = changed(("shift",), augment_shift=part)
    padded = F.pad(IMAGES, (across, across, down, down), mode="replicate")
    steps = set()
    for image, candidates in zip(found, padded, strict=True):
        [place] = [
            (top, left)
            for top in range(2 * down + 1)
            for left in range(2 * across + 1)
            if torch.equal(candidates[:, top : top + 12, left : left + 9], image)
        ]
        steps.add(place)
    assert {top for top, _ in steps} == set(range(2 * down + 1))
    assert {left for _, left in steps} == set(range(2 * across + 1))


@given(smallest=st.floats(0.3, 0.99), height=st.integers(8, 20), width=st.integers(8, 20), step=st.integers(0, 99))
def test_a_crop_is_a_part_of_the_image_in_its_form_enlarged(
    smallest: float, height: int, width: int, step: int
) -> None:
    """A picture of its own coordinates tells which part: it grows evenly, as slowly on both axes, and not beyond."""
    down, across = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    images = torch.stack([down, across, torch.full_like(down, 0.5)]).expand(20, -1, -1, -1)
    found = changed(("crop",), images, step=step, augment_crop=smallest)
    # Away from the borders, where half a pixel is made up.
    slopes_down = found[:, 0, 2:-2].diff(dim=1) * (height - 1)
    slopes_across = found[:, 1, :, 2:-2].diff(dim=2) * (width - 1)
    sizes = slopes_down.mean(dim=(1, 2))
    torch.testing.assert_close(slopes_down, sizes[:, None, None].expand_as(slopes_down), atol=1e-4, rtol=0)
    torch.testing.assert_close(slopes_across, sizes[:, None, None].expand_as(slopes_across), atol=1e-4, rtol=0)
    assert smallest - 1e-4 <= sizes.min()
    assert sizes.max() <= 1 + 1e-4
    assert sizes.max() - sizes.min() > 0.2 * (1 - smallest)
    torch.testing.assert_close(found[:, 2], images[:, 2])


def test_what_is_restored_and_compared_is_the_changed_image(digits: Dataset) -> None:
    settings = {"data.augment": "shift", "data.corruption": "mask", "training.batch_size": 100}
    changed_spec = TrainSpec.create("ae", settings)
    plain_spec = changed_spec.with_settings({"data.augment": "[]"})
    changed_batch, plain_batch = (
        next(batches_from(Batches(digits.train.images, spec, ALONE), 0)) for spec in (changed_spec, plain_spec)
    )
    assert not torch.equal(changed_batch.images, plain_batch.images)
    assert changed_batch.corrupted is not None
    seen = changed_batch.corrupted != 0
    assert torch.equal(changed_batch.corrupted[seen], changed_batch.images[seen])


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [
        ("flip", ("flip",)),
        ("flip,shift", ("flip", "shift")),
        ("[flip, shift]", ("flip", "shift")),
        (["crop", "flip", "crop"], ("flip", "crop")),
        ("shift, flip", ("flip", "shift")),
        ([], ()),
        ("[]", ()),
    ],
)
def test_choices_are_a_list_however_it_is_typed(typed: Any, chosen: tuple[str, ...]) -> None:
    spec = TrainSpec.create("ae", {"data.augment": typed})
    assert spec.data.augment == chosen
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data.augment": "flip,rotate"}, "data.augment: input should be 'flip', 'shift' or 'crop', got 'rotate'"),
        ({"data.augment": 3}, "data.augment: input should be a valid tuple, got 3"),
        ({"data.augment_shift": 0.6}, "data.augment_shift: input should be less than or equal to 0.5"),
        ({"data.augment_crop": 1.0}, "data.augment_crop: input should be less than 1"),
        ({"data.augment_shift": 0.3}, "data.augment_shift: no image is changed so; add shift to data.augment"),
        ({"data.augment": "shift", "data.augment_crop": 0.5}, "add crop to data.augment"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        TrainSpec.create("ae", settings)
    assert "\n" not in str(caught.value)
