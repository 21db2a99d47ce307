import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raygen.data import DataOptions, Dataset, load, names
from raygen.errors import DataError

Refusal = Callable[..., str]
ROOT = Path(__file__).parents[2]


def save_numbered(path: Path, count: int) -> Path:
    """Save `count` images of 8x8, each filled with its own index up to a white corner."""
    images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    images[:, -1, -1] = 255
    np.save(path, images)
    return path


def test_the_default_is_all_digits_in_the_full_range() -> None:
    digits = load(DataOptions())
    assert digits.name == "digits"
    assert digits.shape == (1, 8, 8)
    assert [len(part) for part in (digits.train.images, digits.validation.images)] == [1437, 180]
    assert digits.test is not None
    assert len(digits.test.images) == 180
    assert digits.train.images.dtype == torch.uint8
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)


def test_parts_are_fixed_disjoint_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(save_numbered(tmp_path / "numbered.npy", 100))
    first = load(DataOptions(source=source, validation_fraction=0.2, test_fraction=0.1))
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "other"))  # decoded a second time
    torch.manual_seed(1)
    second = load(DataOptions(source=source, validation_fraction=0.2, test_fraction=0.1))
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.validation.images, second.validation.images)
    assert first.test is not None
    assert second.test is not None
    assert torch.equal(first.test.images, second.test.images)
    parts = [part.images[:, 0, 0, 0].tolist() for part in (first.train, first.validation, first.test)]
    assert [len(part) for part in parts] == [70, 20, 10]
    assert sorted(number for part in parts for number in part) == list(range(100))
    assert parts[0] != sorted(parts[0])


def shown(dataset: Dataset) -> list[list[int]]:
    """The numbers of the images of each part."""
    parts = (dataset.train, dataset.validation, dataset.test)
    return [part.images[:, 0, 0, 0].tolist() for part in parts if part]


def test_the_order_of_images_never_changes(tmp_path: Path) -> None:
    # A reference: if this fails, held-out results are no longer comparable with those of earlier versions.
    source = str(save_numbered(tmp_path / "numbered.npy", 10))
    assert shown(load(DataOptions(source=source))) == [[4, 2, 5, 6, 3, 8, 7, 9], [0], [1]]
    # What earlier versions, which knew no test part, trained on and held out.
    earlier = load(DataOptions(source=source, validation_fraction=0.3, test_fraction=0))
    assert shown(earlier) == [[4, 2, 5, 6, 3, 8, 7], [9, 0, 1]]
    assert earlier.test is None


@pytest.mark.parametrize(
    ("count", "validation", "test", "sizes"),
    [
        (2, 0.01, 0, (1, 1, 0)),
        (2, 0.5, 0, (1, 1, 0)),
        (3, 0.5, 0, (1, 2, 0)),
        (3, 0.1, 0.1, (1, 1, 1)),
        (4, 0.5, 0.49, (1, 1, 2)),
        (30, 0.1, 0.2, (21, 3, 6)),
        (25, 0.5, 0.49, (1, 12, 12)),
    ],
)
def test_every_part_has_an_image(
    tmp_path: Path, count: int, validation: float, test: float, sizes: tuple[int, int, int]
) -> None:
    source = str(save_numbered(tmp_path / "few.npy", count))
    dataset = load(DataOptions(source=source, validation_fraction=validation, test_fraction=test))
    assert tuple(map(len, shown(dataset))) == tuple(size for size in sizes if size)


def test_a_missing_test_part_says_why(tmp_path: Path) -> None:
    dataset = load(DataOptions(source=str(save_numbered(tmp_path / "mine.npy", 10)), test_fraction=0))
    assert dataset.part("train") is dataset.train
    assert dataset.part("validation") is dataset.validation
    with pytest.raises(DataError, match=r"mine has no test images: data\.test_fraction is 0"):
        dataset.part("test")
    with_test = load(DataOptions(source=str(tmp_path / "mine.npy")))
    assert with_test.part("test") is with_test.test


def test_the_digest_follows_the_images_alone(tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(256, size=(20, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "first.npy", images)
    np.save(tmp_path / "same.npy", images / 255)
    images[3, 2, 1] ^= 1
    np.save(tmp_path / "other.npy", images)
    first, same, other = (
        load(DataOptions(source=str(tmp_path / f"{name}.npy"))) for name in ("first", "same", "other")
    )
    assert first.digest == same.digest != other.digest
    assert load(DataOptions(source=str(tmp_path / "first.npy"), test_fraction=0.3)).digest == first.digest
    assert load(DataOptions(source=str(tmp_path / "first.npy"), image_size=9)).digest != first.digest


def test_changing_an_image_in_memory_leaves_the_file_alone(tmp_path: Path) -> None:
    options = DataOptions(source=str(save_numbered(tmp_path / "numbered.npy", 10)))
    before = load(options).train.images.clone()
    load(options).train.images.fill_(77)
    assert torch.equal(load(options).train.images, before)


def test_image_size_resizes_any_source(tmp_path: Path) -> None:
    halves = np.zeros((4, 3, 16, 32), dtype=np.uint8)
    halves[..., 16:] = 200
    np.save(tmp_path / "halves.npy", halves)
    images = load(DataOptions(source=str(tmp_path / "halves.npy"), image_size=8))
    assert images.shape == (3, 8, 8)
    # The centre is kept: the border stays in the middle.
    assert (images.train.images[..., 0] == 0).all()
    assert (images.train.images[..., -1] == 200).all()
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
    for count in (0, 1, 2):
        message = refusal(save_numbered(tmp_path / "few.npy", count))
        assert (
            f"few.npy: 3 images are needed, one to train on, one to validate on, one to test on, not {count}"
            in message
        )
    source = str(tmp_path / "few.npy")
    load(DataOptions(source=source, test_fraction=0))
    assert "3 images are needed" in refusal(source)  # though they are in the cache now


def test_too_small_images(tmp_path: Path, refusal: Refusal) -> None:
    np.save(tmp_path / "small.npy", np.zeros((5, 7, 20), dtype=np.uint8))
    message = refusal(tmp_path / "small.npy")
    assert "small.npy" in message
    assert "20x7" in message
    assert "8x8" in message
    assert load(DataOptions(source=str(tmp_path / "small.npy"), image_size=8)).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "field",
    [
        {"image_size": 7},
        {"validation_fraction": 0.0},
        {"validation_fraction": 0.6},
        {"test_fraction": -0.1},
        {"test_fraction": 0.5},
        {"source": ""},
        {"size": 8},
    ],
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
    assert digits.train.labels is not None
    assert digits.validation.labels is not None
    nearest = torch.cdist(digits.validation.images.flatten(1).float(), digits.train.images.flatten(1).float()).argmin(
        dim=1
    )
    assert (digits.train.labels[nearest] == digits.validation.labels).float().mean() > 0.97


@pytest.mark.parametrize("fractions", [{}, {"test_fraction": 0}, {"validation_fraction": 0.3, "test_fraction": 0.2}])
def test_stacked_digits_are_three_digits_of_their_own_part(fractions: dict[str, float]) -> None:
    stacked = load(DataOptions.model_validate({"source": "stacked-digits", **fractions}))
    digits = load(DataOptions.model_validate(fractions))
    assert stacked.shape == (3, 8, 8)
    assert stacked.train.labels is not None
    assert len(stacked.train.labels.unique()) == 1000
    pairs = [(stacked.train, digits.train), (stacked.validation, digits.validation)]
    if stacked.test is not None and digits.test is not None:
        pairs.append((stacked.test, digits.test))
    assert sum(len(drawn.images) for drawn, _ in pairs) == 30_000
    assert len(pairs) == (2 if fractions == {"test_fraction": 0} else 3)
    for drawn, part in pairs:
        assert part.labels is not None
        assert drawn.labels is not None
        known = dict(zip(map(bytes, part.images.numpy()), part.labels.tolist(), strict=True))
        for image, label in zip(drawn.images[:200], drawn.labels[:200].tolist(), strict=True):
            assert label == int("".join(str(known[bytes(channel.numpy())]) for channel in image))


def save_labelled(path: Path, labels: list[int]) -> Path:
    """Save images of 8x8, each filled with its label."""
    classes = np.array(labels)
    np.savez(path, images=classes.astype(np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2), labels=classes)
    return path


def test_of_a_normal_class_only_its_images_are_there_split_as_before(tmp_path: Path) -> None:
    source = str(save_labelled(tmp_path / "labelled.npz", [0, 1, 2, 1] * 10))
    everything = load(DataOptions(source=source, validation_fraction=0.3))
    ones = load(DataOptions(source=source, validation_fraction=0.3, normal_class=1))
    parts = [(ones.train, everything.train), (ones.validation, everything.validation)]
    assert ones.test is not None
    assert everything.test is not None
    for part, whole in (*parts, (ones.test, everything.test)):
        assert part.labels is not None
        assert whole.labels is not None
        assert len(part.images) == (whole.labels == 1).sum() > 0
        assert part.images.unique().tolist() == part.labels.unique().tolist() == [1]
    assert ones.shape == everything.shape
    assert ones.digest == everything.digest


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "numbered has no classes to take one from; --normal-class is for labelled images"),
        (
            [0, 1, 2, 1],
            "--normal-class 7: labelled needs images of it in each of its parts, .*; its classes are 0, 1, 2",
        ),
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
