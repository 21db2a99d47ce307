import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raygen.data import DataOptions, load, names
from raygen.errors import DataError

Refusal = Callable[..., str]
ROOT = Path(__file__).parents[2]


def save_numbered(path: Path, count: int) -> Path:
    """Save `count` images of 8x8, each filled with its own index."""
    images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.save(path, images)
    return path


def test_the_default_is_all_digits_in_the_full_range() -> None:
    digits = load(DataOptions())
    assert digits.name == "digits"
    assert digits.shape == (1, 8, 8)
    assert len(digits.train) + len(digits.held_out) == 1797
    assert digits.train.dtype == torch.uint8
    assert (digits.train.min(), digits.train.max()) == (0, 255)


def test_held_out_part_is_fixed_disjoint_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(save_numbered(tmp_path / "numbered.npy", 100))
    first = load(DataOptions(source=source, held_out_fraction=0.2))
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "other"))  # decoded a second time
    torch.manual_seed(1)
    second = load(DataOptions(source=source, held_out_fraction=0.2))
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held_out, second.held_out)
    train, held_out = first.train[:, 0, 0, 0].tolist(), first.held_out[:, 0, 0, 0].tolist()
    assert (len(train), len(held_out)) == (80, 20)
    assert sorted(train + held_out) == list(range(100))
    assert train != sorted(train)


def test_the_order_of_images_never_changes(tmp_path: Path) -> None:
    # A reference: if this fails, held-out results are no longer comparable with those of earlier versions.
    images = load(DataOptions(source=str(save_numbered(tmp_path / "numbered.npy", 10))))
    assert [*images.train[:, 0, 0, 0].tolist(), *images.held_out[:, 0, 0, 0].tolist()] == [
        4,
        2,
        5,
        6,
        3,
        8,
        7,
        9,
        0,
        1,
    ]


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(2, 0.01, 1), (2, 0.5, 1), (3, 0.5, 2), (30, 0.1, 3)])
def test_both_parts_have_an_image(tmp_path: Path, count: int, fraction: float, held_out: int) -> None:
    source = str(save_numbered(tmp_path / "few.npy", count))
    images = load(DataOptions(source=source, held_out_fraction=fraction))
    assert (len(images.train), len(images.held_out)) == (count - held_out, held_out)


def test_changing_an_image_in_memory_leaves_the_file_alone(tmp_path: Path) -> None:
    options = DataOptions(source=str(save_numbered(tmp_path / "numbered.npy", 10)))
    before = load(options).train.clone()
    load(options).train.fill_(77)
    assert torch.equal(load(options).train, before)


def test_image_size_resizes_any_source(tmp_path: Path) -> None:
    halves = np.zeros((4, 3, 16, 32), dtype=np.uint8)
    halves[..., 16:] = 200
    np.save(tmp_path / "halves.npy", halves)
    images = load(DataOptions(source=str(tmp_path / "halves.npy"), image_size=8))
    assert images.shape == (3, 8, 8)
    # The centre is kept: the border stays in the middle.
    assert (images.train[..., 0] == 0).all()
    assert (images.train[..., -1] == 200).all()
    assert load(DataOptions(source="digits", image_size=12)).shape == (1, 12, 12)


def test_relative_paths_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_numbered(tmp_path / "mine.npy", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(DataOptions(source="mine.npy")).name == "mine"
    assert load(DataOptions(source="~/mine.npy")).name == "mine"


def test_a_misspelt_name_gets_the_nearest_one(refusal: Refusal) -> None:
    message = refusal("fashion_mnits")
    assert "fashion_mnits" in message
    assert "did you mean fashion-mnist?" in message
    assert "raygen datasets" in message


def test_a_missing_path(tmp_path: Path, refusal: Refusal) -> None:
    message = refusal(tmp_path / "photos")
    assert str(tmp_path / "photos") in message
    assert "did you mean" not in message


def test_too_few_images(tmp_path: Path, refusal: Refusal) -> None:
    for count in (0, 1):
        assert "few.npy" in refusal(save_numbered(tmp_path / "few.npy", count))


def test_too_small_images(tmp_path: Path, refusal: Refusal) -> None:
    np.save(tmp_path / "small.npy", np.zeros((5, 7, 20), dtype=np.uint8))
    message = refusal(tmp_path / "small.npy")
    assert "small.npy" in message
    assert "20x7" in message
    assert "8x8" in message
    assert load(DataOptions(source=str(tmp_path / "small.npy"), image_size=8)).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "field",
    [{"image_size": 7}, {"held_out_fraction": 0.0}, {"held_out_fraction": 0.6}, {"source": ""}, {"size": 8}],
)
def test_options_out_of_range_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataOptions.model_validate(field)


def test_options_are_frozen_described_and_plain_json() -> None:
    options = DataOptions(source="mnist", root=Path("data"))
    with pytest.raises(ValidationError):
        options.source = "digits"  # type: ignore[misc]
    assert all(field.description for field in DataOptions.model_fields.values())
    assert DataOptions.model_validate_json(options.model_dump_json()) == options


def test_names_are_described_and_listed_without_heavy_imports() -> None:
    assert list(names()) == ["digits", "stacked-digits", "mnist", "fashion-mnist", "cifar10", "celeba"]
    assert all(description.endswith(".") for description in names().values())
    program = (
        "import sys; from raygen.data import names; names(); "
        "print([name for name in ('torch', 'torchvision', 'numpy', 'sklearn', 'PIL') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"


def test_digits_have_their_labels() -> None:
    """A nearest-neighbour look-up is right for nearly all held-out digits only if the labels are theirs."""
    digits = load(DataOptions())
    assert digits.train_labels is not None
    assert digits.held_out_labels is not None
    nearest = torch.cdist(digits.held_out.flatten(1).float(), digits.train.flatten(1).float()).argmin(dim=1)
    assert (digits.train_labels[nearest] == digits.held_out_labels).float().mean() > 0.97


def test_stacked_digits_are_three_digits() -> None:
    stacked, digits = load(DataOptions(source="stacked-digits")), load(DataOptions())
    assert stacked.shape == (3, 8, 8)
    assert stacked.train_labels is not None
    assert len(stacked.train_labels.unique()) == 1000
    known = {}
    for images, labels in ((digits.train, digits.train_labels), (digits.held_out, digits.held_out_labels)):
        assert labels is not None
        known.update({bytes(image.numpy()): label for image, label in zip(images, labels.tolist(), strict=True)})
    for image, label in zip(stacked.train[:50], stacked.train_labels[:50].tolist(), strict=True):
        assert label == int("".join(str(known[bytes(channel.numpy())]) for channel in image))


def save_labelled(path: Path, labels: list[int]) -> Path:
    """Save images of 8x8, each filled with its label."""
    classes = np.array(labels)
    np.savez(path, images=classes.astype(np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2), labels=classes)
    return path


def test_of_a_normal_class_only_its_images_are_there_split_as_before(tmp_path: Path) -> None:
    source = str(save_labelled(tmp_path / "labelled.npz", [0, 1, 2, 1] * 10))
    everything = load(DataOptions(source=source, held_out_fraction=0.3))
    ones = load(DataOptions(source=source, held_out_fraction=0.3, normal_class=1))
    assert (len(ones.train) + len(ones.held_out), ones.shape) == (20, everything.shape)
    assert everything.held_out_labels is not None
    assert len(ones.held_out) == (everything.held_out_labels == 1).sum()
    for images, labels in ((ones.train, ones.train_labels), (ones.held_out, ones.held_out_labels)):
        assert labels is not None
        assert images.unique().tolist() == labels.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "numbered has no classes to take one from; --normal-class is for labelled images"),
        ([0, 1, 2, 1], "--normal-class 7: labelled needs images of it .*; its classes are 0, 1, 2"),
        ([7, *[1] * 39], "--normal-class 7: labelled needs images of it"),
    ],
)
def test_a_class_that_is_not_there_is_refused(labels: list[int] | None, message: str, tmp_path: Path) -> None:
    if labels is None:
        source = save_numbered(tmp_path / "numbered.npy", 40)
    else:
        source = save_labelled(tmp_path / "labelled.npz", (labels * 10)[:40])
    with pytest.raises(DataError, match=message):
        load(DataOptions(source=str(source), normal_class=7))
