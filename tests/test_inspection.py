"""Which images are looked at, and paths through a latent space."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raygen import data, inspection, pictures
from raygen.data import DataOptions, Dataset


def test_positions_lead_back_to_the_rows_of_an_array(tmp_path: Path) -> None:
    rows = np.arange(50, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "numbered.npy", rows)
    dataset = data.load(DataOptions(source=str(tmp_path / "numbered.npy")))
    shown = torch.cat([part.images for part in (dataset.train, dataset.validation, dataset.test) if part])[:, 0, 0, 0]
    assert data.source_positions(dataset).tolist() == shown.tolist()
    for split, count in (("all", 50), ("train", 40), ("validation", 5), ("test", 5)):
        chosen = inspection.select(dataset, split)  # type: ignore[arg-type]
        assert chosen.images[:, 0, 0, 0].tolist() == chosen.positions.tolist() == sorted(chosen.positions.tolist())
        assert len(chosen.positions) == count
        assert chosen.labels is None
        assert set(chosen.part_names) == ({"train", "validation", "test"} if split == "all" else {split})


def test_positions_lead_back_to_the_sorted_files_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        Image.new("L", (8, 8), number).save(folder / f"{number:02d}.png")
    chosen = inspection.select(data.load(DataOptions(source=str(folder))), "all")
    assert chosen.images[:, 0, 0, 0].tolist() == list(range(20))


def test_labels_and_splits_stay_with_their_images(digits: Dataset) -> None:
    chosen = inspection.select(digits, "all")
    assert chosen.labels is not None
    assert digits.test is not None
    assert digits.test.labels is not None
    order = data.source_positions(digits)
    last = order[-1]
    assert torch.equal(chosen.images[last], digits.test.images[-1])
    assert chosen.labels[last] == digits.test.labels[-1]
    assert chosen.part_names[last] == "test"
    counts = [chosen.part_names.count(part) for part in inspection.PARTS]
    assert counts == [len(digits.train.images), len(digits.validation.images), len(digits.test.images)]


def test_an_official_test_part_comes_last(digits: Dataset) -> None:
    official = replace(digits, has_official_test=True)
    chosen = inspection.select(official, "all")
    assert digits.test is not None
    in_training_file = 1797 - len(digits.test.images)
    assert set(chosen.part_names[:in_training_file]) == {"train", "validation"}
    assert chosen.part_names[in_training_file:] == ["test"] * len(digits.test.images)


def test_great_circles_keep_the_length_that_a_gaussian_has() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(5, 1, 64, generator=random), dim=-1) for _ in range(2))
    path = inspection.spherical(first, second, torch.linspace(0, 1, 9)[None, :, None])
    torch.testing.assert_close(path.norm(dim=-1), torch.ones(5, 9))
    torch.testing.assert_close(path[:, :1], first)
    torch.testing.assert_close(path[:, -1:], second)
    steps = (path[:, 1:] - path[:, :-1]).norm(dim=-1)
    torch.testing.assert_close(steps, steps[:, :1].expand(-1, 8))


def test_parallel_ends_are_joined_by_a_line() -> None:
    ends = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]])
    assert inspection.spherical(*ends, torch.tensor(0.5)).tolist() == [[2.0, 0.0]]
    quarter = inspection.spherical(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor(0.5))
    assert quarter.tolist() == [pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])]


@pytest.mark.parametrize(("count", "columns", "rows"), [(4, 4, 2), (5, 4, 4), (3, 1, 6)])
def test_pairs_stand_above_each_other(count: int, columns: int, rows: int) -> None:
    above = torch.arange(1, count + 1)[:, None, None, None].expand(-1, 1, 32, 32) / 255
    pixels = np.asarray(pictures.pairs(above, above + 100 / 255, columns))[17::34, 17::34]
    assert pixels.shape == (rows, columns)
    upper, lower = pixels[::2].flatten(), pixels[1::2].flatten()
    assert upper[:count].tolist() == list(range(1, count + 1))
    assert (lower[:count] == upper[:count] + 100).all()
    assert not upper[count:].any()
    assert not lower[count:].any()


def test_labels_do_not_cover_the_pictures() -> None:
    bright = pictures.grid(torch.ones(3, 3, 32, 32), columns=3)
    sheet = np.asarray(pictures.labelled([("a", bright), ("a much longer label", bright)]))
    assert sheet.shape[0] == 2 * 34
    assert (sheet[:, -3 * 34 :] == np.concatenate([np.asarray(bright)] * 2)).all()
    left = sheet[:, : -3 * 34]
    assert left[:34].max() > 200
    assert left[34:].astype(int).sum() > 3 * left[:34].astype(int).sum()
