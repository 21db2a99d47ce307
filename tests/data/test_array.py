import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen.data import DataOptions, Dataset, load

Refusal = Callable[..., str]

LAYOUTS = {
    "NHW": lambda images: images[:, 0],
    "NCHW": lambda images: images,
    "NHWC": lambda images: images.transpose(0, 2, 3, 1),
}
TYPES = {
    "uint8": lambda images: images,
    "float32": lambda images: (images / 255).astype(np.float32),
    "float64": lambda images: images / 255,
    ">f4": lambda images: (images / 255).astype(">f4"),
    "bool": lambda images: images > 127,
}


def load_file(path: Path) -> Dataset:
    return load(DataOptions(source=str(path), test_fraction=0))


def content(dataset: Dataset) -> np.ndarray:
    """All images, sorted, as the file's order is not kept."""
    images = torch.cat([dataset.train.images, dataset.validation.images]).numpy()
    return np.array(sorted(images.tolist()))


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    kind=st.sampled_from(sorted(TYPES)),
    channels=st.sampled_from([1, 3]),
    shape=st.tuples(st.integers(2, 5), st.integers(8, 11), st.integers(8, 11)),
    fortran=st.booleans(),
    suffix=st.sampled_from([".npy", ".npz"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_layout_and_type_keeps_the_values(
    layout: str, kind: str, channels: int, shape: tuple[int, int, int], fortran: bool, suffix: str, seed: int
) -> None:
    count, height, width = shape
    channels = 1 if layout == "NHW" else channels
    images = np.random.RandomState(seed).randint(256, size=(count, channels, height, width)).astype(np.uint8)
    saved = TYPES[kind](LAYOUTS[layout](images))
    saved = np.asfortranarray(saved) if fortran else np.ascontiguousarray(saved)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mine{suffix}"
        if suffix == ".npy":
            np.save(path, saved)
        else:
            np.savez(path, images=saved, notes=np.zeros(3))
        dataset = load_file(path)
    assert dataset.name == "mine"
    assert dataset.shape == (channels, height, width)
    expected = (images > 127).astype(np.uint8) * 255 if kind == "bool" else images
    assert np.array_equal(content(dataset), np.array(sorted(expected.tolist())))


def test_floats_are_rounded_not_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.full((2, 8, 8), 0.999, dtype=np.float32))
    assert load_file(tmp_path / "grey.npy").train.images.unique().tolist() == [255]


def test_the_only_array_of_a_npz_needs_no_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "one.npz", faces=np.zeros((4, 3, 9, 9), dtype=np.uint8))
    assert load_file(tmp_path / "one.npz").shape == (3, 9, 9)


def test_a_rewritten_file_is_decoded_again(tmp_path: Path) -> None:
    for value in (2, 3):
        np.save(tmp_path / "mine.npy", np.full((4, 8, 8 + value), value, dtype=np.uint8))
        assert load_file(tmp_path / "mine.npy").train.images.unique().tolist() == [value]


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((4, 8, 8), dtype=np.int64), "int64"),
        (np.zeros((4, 8, 8), dtype=np.float16), "float16"),
        (np.zeros((4, 8, 8), dtype=complex), "complex128"),
        (np.full((4, 8, 8), "a"), "<U1"),
        (np.full((4, 8, 8), 1.5, dtype=np.float32), "1.5"),
        (np.full((4, 8, 8), -0.25), "-0.25"),
        (np.full((4, 8, 8), np.nan), "nan"),
        (np.full((4, 8, 8), np.inf), "inf"),
        (np.zeros((8, 8), dtype=np.uint8), "[8, 8]"),
        (np.zeros((), dtype=np.uint8), "[]"),
        (np.zeros((4, 8, 8, 4), dtype=np.uint8), "4"),
        (np.zeros((4, 2, 8, 8), dtype=np.uint8), "2"),
        (np.zeros((2, 3, 8, 8, 3), dtype=np.uint8), "[2, 3, 8, 8, 3]"),
    ],
)
def test_what_is_not_images(tmp_path: Path, refusal: Refusal, array: np.ndarray, named: str) -> None:
    np.save(tmp_path / "mine.npy", array)
    message = refusal(tmp_path / "mine.npy")
    assert str(tmp_path / "mine.npy") in message
    assert named in message
    assert "uint8" in message
    assert "[N, C, H, W]" in message


@pytest.mark.parametrize("count", [20, 2500])
def test_masks_of_0_and_1_are_not_trained_as_black(tmp_path: Path, refusal: Refusal, count: int) -> None:
    masks = np.zeros((count, 8, 8), dtype=np.uint8)
    masks[-1, 3, 5] = 1
    for name in ("mine.npy", "mine.npz"):
        path = tmp_path / name
        np.save(path, masks) if name == "mine.npy" else np.savez(path, images=masks)
        assert refusal(path) == (
            f"{path} is uint8 and holds only 0 and 1, and 255 is white: save it as bool, or multiply it by 255"
        )
    np.save(tmp_path / "bits.npy", masks.astype(bool))
    assert content(load_file(tmp_path / "bits.npy")).max() == 255
    masks[-1, 3, 5] = 2  # one pixel of all is no 0 or 1
    np.save(tmp_path / "dark.npy", masks)
    assert content(load_file(tmp_path / "dark.npy")).max() == 2
    np.save(tmp_path / "black.npy", 0 * masks)
    assert content(load_file(tmp_path / "black.npy")).max() == 0


def test_python_objects_are_never_loaded(tmp_path: Path, refusal: Refusal) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    assert "objects.npy" in refusal(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", images=objects)
    assert "objects.npz" in refusal(tmp_path / "objects.npz")


@pytest.mark.parametrize("name", ["mine.npy", "mine.npz"])
def test_damaged_files(tmp_path: Path, refusal: Refusal, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        if name == "mine.npz":
            np.savez_compressed(file, images=np.random.RandomState(0).rand(4, 8, 8))
        else:
            np.save(file, np.zeros((4, 8, 8)))
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (
        whole[:middle],
        whole[:5],
        b"",
        b"hello there",
        whole[:middle] + bytes(40) + whole[middle + 40 :],
    ):
        if name == "mine.npy" and len(damaged) == len(whole):
            continue  # other numbers, not damage that can be seen
        path.write_bytes(damaged)
        assert str(path) in refusal(path)


def test_a_npz_with_several_arrays_lists_them(tmp_path: Path, refusal: Refusal) -> None:
    np.savez(tmp_path / "two.npz", cats=np.zeros(3), dogs=np.zeros(3))
    message = refusal(tmp_path / "two.npz")
    assert "two.npz" in message
    assert "cats, dogs" in message
    assert "`images`" in message
    np.savez(tmp_path / "none.npz")
    assert "none.npz" in refusal(tmp_path / "none.npz")


def test_a_file_of_another_kind(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n")
    message = refusal(tmp_path / "photo.png")
    assert "photo.png" in message
    assert ".npz" in message


@pytest.mark.parametrize("labels", [np.zeros(3, dtype=int), np.zeros(4), np.zeros((4, 2), dtype=int), -np.arange(4)])
def test_labels_that_are_none(tmp_path: Path, refusal: Refusal, labels: np.ndarray) -> None:
    np.savez(tmp_path / "mine.npz", images=np.zeros((4, 8, 8), dtype=np.uint8), labels=labels)
    message = refusal(tmp_path / "mine.npz")
    assert "mine.npz: `labels` is" in message
    assert "integers from 0 of shape [4]" in message
