import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raygen.data import DataOptions, Dataset, load
from raygen.data.folder import image_files

Refusal = Callable[..., str]


def save(path: Path, value: int | tuple[int, ...] = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Save an image of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def load_folder(folder: Path, image_size: int | None = None) -> Dataset:
    return load(DataOptions(source=str(folder), image_size=image_size, test_fraction=0))


def values(dataset: Dataset) -> list[int]:
    """First value of every image, sorted."""
    return sorted(torch.cat([dataset.train.images, dataset.validation.images])[:, 0, 0, 0].tolist())


def test_class_folders_are_read_in_sorted_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    expected = [save(folder / name) for name in ("a/1.png", "a/2.JPG", "b/deep/1.webp", "c.bmp")]
    save(folder / ".hidden.png")
    save(folder / ".trash/1.png")
    (folder / "labels.csv").write_text("1,cat")
    assert image_files(folder) == expected
    dataset = load_folder(folder)
    assert dataset.name == "photos"
    assert dataset.shape == (3, 8, 8)
    assert len(dataset.train.images) + len(dataset.validation.images) == 4


def test_colours_and_layout(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"{index}.png", (10, 20, 30), size=(12, 9))
    image = load_folder(tmp_path).train.images[0]
    assert image.shape == (3, 9, 12)
    assert [image[channel].unique().item() for channel in range(3)] == [10, 20, 30]


def test_grey_only_if_all_are_grey(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 7, mode="L")
    save(tmp_path / "2.png", 1, mode="1")
    save(tmp_path / "3.png", (40, 255), mode="LA")
    Image.fromarray(np.full((8, 8), 90 * 256 + 200, dtype=np.uint16)).save(tmp_path / "4.png")  # 16 bits
    (tmp_path / "5.pgm").write_bytes(b"P5 8 8 65535\n" + b"\x64\x00" * 64)  # 16 bits, opened as 32
    dataset = load_folder(tmp_path)
    assert dataset.shape == (1, 8, 8)
    assert values(dataset) == [7, 40, 90, 100, 255]
    save(tmp_path / "6.png", (9, 9, 9))
    dataset = load_folder(tmp_path)  # the folder changed: it is decoded again
    assert dataset.shape == (3, 8, 8)
    assert values(dataset) == [7, 9, 40, 90, 100, 255]


def test_palettes_and_transparency(tmp_path: Path) -> None:
    save(tmp_path / "1.png", (5, 6, 7, 0), mode="RGBA")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    palette.save(tmp_path / "2.png", transparency=b"\x00\x80")
    palette.save(tmp_path / "3.gif")
    assert values(load_folder(tmp_path)) == [5, 50, 50]


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture = np.zeros((16, 32, 3), dtype=np.uint8)
    picture[:, 16:] = 255
    for name in ("1.jpg", "2.jpg"):
        Image.fromarray(picture).save(tmp_path / name, exif=exif, quality=95)
    save(tmp_path / "3.jpg", size=(16, 32))  # upright already
    image = load_folder(tmp_path).train.images[0]
    assert image.shape == (3, 32, 16)
    dataset = load_folder(tmp_path)
    turned = torch.cat([dataset.train.images, dataset.validation.images]).float().mean(dim=(1, 3))  # [N, H]
    assert sorted(turned[:, -1].round().tolist()) == [0, 255, 255]
    assert turned[:, 0].max() < 10


def test_image_size_keeps_the_centre_of_large_photographs(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:400, 0:700]
    disc = ((rows - 200) ** 2 + (columns - 350) ** 2 < 150**2).astype(np.uint8) * 255
    for name in ("1.jpg", "2.png"):
        Image.fromarray(disc).save(tmp_path / name)
    save(tmp_path / "3.png", 255, size=(10, 30), mode="L")  # smaller than asked for
    dataset = load_folder(tmp_path, image_size=32)
    assert dataset.shape == (1, 32, 32)
    images = torch.cat([dataset.train.images, dataset.validation.images]).float()
    discs = images[images[:, 0, 0, 0] < 128, 0]
    assert len(discs) == 2
    expected = torch.from_numpy(disc[:, 150:550].reshape(1, 1, 400, 400)).float()
    expected = torch.nn.functional.interpolate(expected, 32, mode="bicubic", antialias=True)[0, 0].clamp(0, 255)
    assert (discs - expected).abs().mean() < 2


def test_differing_sizes(tmp_path: Path, refusal: Refusal) -> None:
    first, second = save(tmp_path / "1.png", size=(10, 20)), save(tmp_path / "2.png", size=(20, 10))
    message = refusal(tmp_path)
    assert f"{first} is 10x20" in message
    assert f"{second} is 20x10" in message
    assert "--image-size 64" in message
    assert load_folder(tmp_path, image_size=64).shape == (3, 64, 64)


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("bad.png", lambda content: content[: len(content) // 2]),  # cut off
        ("bad.jpg", lambda content: content[: len(content) // 2]),
        ("bad.png", lambda content: content[:60] + bytes(20) + content[80:]),  # a chunk overwritten
        ("bad.png", lambda content: b"not an image"),
        ("bad.png", lambda content: b""),
    ],
)
def test_a_corrupt_image(
    tmp_path: Path, refusal: Refusal, name: str, damage: Callable[[bytes], bytes], image_size: int | None
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = Image.fromarray(np.random.RandomState(0).randint(256, size=(32, 32, 3)).astype(np.uint8))
    for good in ("1.png", "2.png", name):
        noise.save(folder / good)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert str(folder / name) in refusal(folder, image_size=image_size)
    assert list((tmp_path / "cache" / "decoded").glob("*.npy")) == []


def test_float_pixels(tmp_path: Path, refusal: Refusal) -> None:
    for name in ("1.tiff", "2.tiff", "3.tiff"):
        Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(tmp_path / name)
    assert ".tiff" in refusal(tmp_path)


def test_no_images(tmp_path: Path, refusal: Refusal) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    assert str(folder) in refusal(folder)
    (folder / "notes.txt").write_text("nothing to see")
    message = refusal(folder)
    assert str(folder) in message
    assert ".png" in message


def test_a_link_to_nothing(tmp_path: Path, refusal: Refusal) -> None:
    save(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    assert str(tmp_path / "2.png") in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path, refusal: Refusal) -> None:
    closed = save(tmp_path / "closed/1.png").parent
    closed.chmod(0)
    try:
        assert str(closed) in refusal(tmp_path)
    finally:
        closed.chmod(0o700)


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for index, name in enumerate(("cat", "dog/old", "dog/young", "eel")):
        for number in range(3):
            save(tmp_path / "photos" / name / f"{number}.png", index, mode="L")
    dataset = load_folder(tmp_path / "photos")
    assert dataset.train.labels is not None
    classes = torch.tensor([0, 1, 1, 2])
    assert torch.equal(dataset.train.labels, classes[dataset.train.images[:, 0, 0, 0].long()])


@pytest.mark.parametrize("names", [("a/1.png", "b/1.png", "2.png"), ("a/1.png", "a/2.png"), ("1.png", "2.png")])
def test_folders_that_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        save(tmp_path / name)
    assert load_folder(tmp_path).train.labels is None
