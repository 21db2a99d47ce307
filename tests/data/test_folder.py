import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raygen.data import DataOptions, Dataset, cache, load, source_positions
from raygen.data.folder import ImageFiles, image_files
from raygen.errors import DamagedFilesError, DamagedFilesWarning, DataError

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
    expected = ["a/1.png", "a/2.JPG", "b/deep/1.webp", "c.bmp"]
    for name in expected:
        save(folder / name)
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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def save_png(path: Path, bits: int, colour: int, row: bytes, *chunks: bytes) -> Path:
    """Save an 8x8 PNG of equal rows as the format has it: Pillow cannot write all that it reads."""
    header = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress((b"\0" + row) * 8)), chunk(b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6  # in the header of a PNG


def palette_image() -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 50, 60, 70])
    return image


def pixels_of(folder: Path) -> list[list[int]]:
    """The colour of each image of one colour, sorted."""
    dataset = load_folder(folder)
    images = torch.cat([dataset.train.images, dataset.validation.images])
    assert (images == images[..., :1, :1]).all()
    return sorted(images[..., 0, 0].tolist())


def test_what_is_transparent_shows_white(tmp_path: Path) -> None:
    save(tmp_path / "clear.png", (5, 6, 7, 0), mode="RGBA")
    save(tmp_path / "half.webp", (0, 0, 0, 128), mode="RGBA")
    save(tmp_path / "opaque.tiff", (5, 6, 7, 255), mode="RGBA")
    save(tmp_path / "grey.png", (100, 51), mode="LA")
    palette_image().save(tmp_path / "palette.png", transparency=b"\x00\x80")
    palette_image().save(tmp_path / "palette.gif")
    palette_image().save(tmp_path / "clear.gif", transparency=1)
    alpha = Image.merge("PA", (Image.new("L", (8, 8), 1), Image.new("L", (8, 8), 128)))
    alpha.putpalette([0, 0, 0, 50, 60, 70])
    alpha.save(tmp_path / "palette.tiff")
    half = [152, 157, 162]  # of (50, 60, 70) and white
    assert pixels_of(tmp_path) == [[5, 6, 7], [50, 60, 70], [127] * 3, half, half, [224] * 3, [255] * 3, [255] * 3]


def test_grey_stays_grey_on_white(tmp_path: Path) -> None:
    for index, alpha in enumerate((0, 51, 255)):
        save(tmp_path / f"{index}.png", (100, alpha), mode="LA")
    assert load_folder(tmp_path).shape == (1, 8, 8)
    assert values(load_folder(tmp_path)) == [100, 224, 255]


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "shown"),
    [
        (1, b"\xff", 1, 255),
        (1, b"\x00", 0, 255),
        (2, b"\xaa\xaa", 2, 255),
        (2, b"\xaa\xaa", 1, 170),
        (4, b"\x33" * 4, 3, 255),
        (4, b"\x33" * 4, 51, 51),
        (8, b"\x07" * 8, 7, 255),
        (8, b"\x07" * 8, 8, 7),
        (16, b"\x12\x34" * 8, 0x1234, 255),
        (16, b"\x12\x34" * 8, 0x1235, 0x12),
    ],
)
def test_a_grey_that_is_transparent(tmp_path: Path, bits: int, row: bytes, transparent: int, shown: int) -> None:
    mark = chunk(b"tRNS", struct.pack(">H", transparent))
    save_png(tmp_path / "1.png", bits, GREY, row, mark)
    save(tmp_path / "2.png", 200, mode="L")
    save_png(tmp_path / "3.png", 16, GREY, b"\xc9\x00" * 8)  # a bright one of 16 bits
    assert values(load_folder(tmp_path)) == sorted([shown, 200, 201])


def test_a_colour_that_is_transparent(tmp_path: Path, refusal: Refusal) -> None:
    mark = chunk(b"tRNS", struct.pack(">3H", 10, 20, 30))
    save_png(tmp_path / "1.png", 8, COLOUR, bytes([10, 20, 30] * 8), mark)
    save_png(tmp_path / "2.png", 8, COLOUR, bytes([10, 20, 31] * 8), mark)
    assert pixels_of(tmp_path) == [[10, 20, 31], [255, 255, 255]]
    path = save_png(tmp_path / "3.png", 16, COLOUR, bytes([200, 0] * 24), mark)
    assert refusal(tmp_path).startswith(f"{path} names a transparent colour in 16 bits")


FORMATS = ("jpg", "png", "tiff", "webp")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("image_size", [None, 8])
def test_photographs_are_turned_upright(tmp_path: Path, suffix: str, image_size: int | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture = np.zeros((16, 32, 3), dtype=np.uint8)
    picture[:, 16:] = 255
    for name in ("1", "2"):
        Image.fromarray(picture).save(tmp_path / f"{name}.{suffix}", exif=exif, quality=95)
    save(tmp_path / f"3.{suffix}", size=(16, 32))  # upright already
    dataset = load_folder(tmp_path, image_size)
    assert dataset.shape == (3, 32, 16) if image_size is None else (3, 8, 8)
    rows = torch.cat([dataset.train.images, dataset.validation.images]).float().mean(dim=(1, 3))  # [N, H]
    assert sorted((rows[:, -1] > 240).tolist()) == [False, True, True]
    assert rows[:, 0].max() < 15


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_tiffs_are_turned_in_all_ways(tmp_path: Path, orientation: int, kind: type) -> None:
    upright = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16) + 100
    # How to store it so that it is upright once it has been turned as TIFF 6.0 (page 36) says.
    stored = {
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    white = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[kind]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("1", "2"):
        pixels = (stored * (white / 255)).round(3).astype(kind)
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{name}.tiff", exif=exif)
    assert np.array_equal(load_folder(tmp_path).train.images[0, 0].numpy(), upright)


def test_a_png_that_tells_behind_its_pixels_how_it_is_turned(tmp_path: Path, refusal: Refusal) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / "1.png", 9, size=(16, 8), mode="L")
    save(tmp_path / "2.png", 9, size=(16, 8), mode="L")
    save(tmp_path / "3.png", 9, size=(16, 8), mode="L")
    content = turned.read_bytes()
    turned.write_bytes(content[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + content[-12:])
    message = refusal(tmp_path)
    assert message.startswith(f"{turned} is 8x16 once turned upright, other images 16x8; ")
    assert load_folder(tmp_path, image_size=8).shape == (1, 8, 8)


def test_masks_of_0_and_1_are_not_trained_as_black(tmp_path: Path, refusal: Refusal) -> None:
    folder = tmp_path / "masks"
    for index in range(3):
        save(folder / f"{index}.png", index % 2, mode="L")
    save(folder / "3.png", (1, 0), mode="LA")  # transparent, but not white for that
    message = refusal(folder)
    assert message == f"all pixels of the images in {folder} are 0 or 1, and 255 is white: multiply all values by 255"
    save(folder / "4.png", 2, mode="L")  # dark, but no mask
    assert values(load_folder(folder)) == [0, 0, 1, 2, 255]
    for name in ("0", "1", "2"):
        save(tmp_path / "bits" / f"{name}.png", int(name) % 2, mode="1")
    assert values(load_folder(tmp_path / "bits")) == [0, 0, 255]


def write_pgm(path: Path, value: int, largest: int = 65535) -> None:
    path.write_bytes(f"P5 8 8 {largest}\n".encode() + struct.pack(">64H", *[value] * 64))


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_16_bits_are_read_alike_in_all_images(tmp_path: Path, refusal: Refusal, kind: str) -> None:
    def save_16(name: str, value: int) -> None:
        if kind == "pgm":
            write_pgm(tmp_path / f"{name}.pgm", value)
        else:
            Image.fromarray(np.full((8, 8), value, dtype=np.uint16)).save(tmp_path / f"{name}.{kind}")

    save_16("1", 4095)
    save_16("2", 900)
    message = refusal(tmp_path)
    assert message.startswith(f"the 16-bit images in {tmp_path} hold no value above 4095, and 65535 is white: ")
    assert "by 16 if their white is 4095" in message
    save_16("3", 65535)
    assert values(load_folder(tmp_path)) == [3, 15, 255]


def write_colour_tiff(path: Path, value: int) -> None:
    """Save an 8x8 TIFF of 16 bits a channel, which Pillow reads but does not write."""
    tags = [(256, 8), (257, 8), (258, 110), (259, 1), (262, 2), (273, 118), (277, 3), (279, 384)]
    counts = {258: 3}
    entries = b"".join(struct.pack("<HHII", tag, 3, counts.get(tag, 1), content) for tag, content in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(head + struct.pack("<4H", 16, 16, 16, 0) + struct.pack("<192H", *[value] * 192))


def test_16_bits_of_colour(tmp_path: Path, refusal: Refusal) -> None:
    for index, value in enumerate((4095, 100)):
        save_png(tmp_path / f"{index}.png", 16, COLOUR, struct.pack(">24H", *[value] * 24))
    # Half transparent, so that it is bright on white.
    save_png(tmp_path / "2.png", 16, COLOUR_ALPHA, struct.pack(">32H", *[1000, 1000, 1000, 30000] * 8))
    save(tmp_path / "3.png", (200, 200, 200))
    write_colour_tiff(tmp_path / "5.tiff", 1000)
    assert "hold no value above 4095" in refusal(tmp_path)
    save_png(tmp_path / "4.png", 16, GREY_ALPHA, struct.pack(">16H", *[40000, 65535] * 8))
    assert [colour[0] for colour in pixels_of(tmp_path)] == [0, 3, 15, 139, 156, 200]


def test_a_pgm_is_scaled_by_its_own_largest_value(tmp_path: Path) -> None:
    for index, value in enumerate((0, 2048, 4095)):
        write_pgm(tmp_path / f"{index}.pgm", value, largest=4095)
    assert values(load_folder(tmp_path)) == [0, 128, 255]


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_tiff_whose_white_is_0(tmp_path: Path, refusal: Refusal, kind: type) -> None:
    for name in ("1", "2", "3"):
        Image.fromarray(np.full((8, 8), 1, dtype=kind)).save(tmp_path / f"{name}.tiff")
    content = (tmp_path / "1.tiff").read_bytes()
    black_is_zero, white_is_zero = (struct.pack("<HHII", 262, 3, 1, value) for value in (1, 0))
    assert black_is_zero in content
    (tmp_path / "1.tiff").write_bytes(content.replace(black_is_zero, white_is_zero))
    assert refusal(tmp_path).startswith(f"{tmp_path / '1.tiff'} has 0 for white in more than 8 bits")


def test_32_bit_integers_have_no_known_white(tmp_path: Path, refusal: Refusal) -> None:
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(tmp_path / "1.tiff")
    save(tmp_path / "2.png", 7, mode="L")
    save(tmp_path / "3.png", 7, mode="L")
    assert refusal(tmp_path).startswith(f"{tmp_path / '1.tiff'} has signed or 32-bit integers")


@pytest.mark.parametrize(("value", "named"), [(np.nan, "nan"), (255, "255"), (-0.5, "-0.5"), (np.inf, "inf")])
def test_floats_outside_0_and_1_are_refused(tmp_path: Path, refusal: Refusal, value: float, named: str) -> None:
    pixels = np.zeros((8, 8), dtype=np.float32)
    for name in ("1.tiff", "2.tiff"):
        Image.fromarray(pixels).save(tmp_path / name)
    pixels[3, 5] = value
    Image.fromarray(pixels).save(tmp_path / "3.tiff")
    message = f"{tmp_path / '3.tiff'} has float pixels, one of them {named}: scale them so that all are in [0, 1]"
    assert refusal(tmp_path) == message


def test_floats_in_0_and_1_are_grey(tmp_path: Path) -> None:
    for index, value in enumerate((0, 0.502, 1)):
        Image.fromarray(np.full((8, 8), value, dtype=np.float32)).save(tmp_path / f"{index}.tiff")
    assert load_folder(tmp_path).shape == (1, 8, 8)
    assert values(load_folder(tmp_path)) == [0, 128, 255]


def test_cmyk_and_animations(tmp_path: Path) -> None:
    save(tmp_path / "1.tiff", (255, 0, 0, 0), mode="CMYK")
    save(tmp_path / "2.jpg", (0, 0, 0, 255), mode="CMYK")
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    for name in ("3.gif", "4.png", "5.webp"):
        first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
    assert pixels_of(tmp_path) == [[0, 0, 0], [0, 255, 255], *[[250, 0, 0]] * 3]


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
def test_a_corrupt_image_is_left_out_and_named(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], image_size: int | None
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.RandomState(0)
    for good in ("1.png", "2.png", "3.png", name):
        Image.fromarray(random.randint(256, size=(32, 32, 3)).astype(np.uint8)).save(folder / good)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    line = rf"^1 of 4 images in {folder} cannot be decoded and is left out: {name} \([^()]+(\(.+\))?\)$"
    with pytest.warns(DamagedFilesWarning, match=line):
        dataset = load_folder(folder, image_size)
    with pytest.warns(DamagedFilesWarning, match=line):  # from the cache too
        assert load_folder(folder, image_size).damaged == dataset.damaged
    assert list(dataset.damaged) == [name]
    assert names_of(dataset) == ["1.png", "2.png", "3.png"]
    (folder / name).unlink()
    without = load_folder(folder, image_size)
    assert without.digest == dataset.digest, "the images are those of the folder without it"
    assert torch.equal(without.train.images, dataset.train.images)


def test_all_corrupt_images_are_named_at_once(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CHUNK_BYTES", 3 * 3 * 32 * 32)
    folder = tmp_path / "photos"
    noise = np.random.RandomState(0).randint(256, size=(32, 32, 3)).astype(np.uint8)
    for number in range(15):
        path = save(folder / f"{number:02}.png")
        Image.fromarray(noise).save(path)
        if number < 12:  # some are seen by their headers, others when their pixels are decoded
            path.write_bytes(path.read_bytes()[: 500 * (number % 2)])
    with pytest.warns(DamagedFilesWarning) as caught:
        dataset = load_folder(folder)
    assert list(dataset.damaged) == [f"{number:02}.png" for number in range(12)]
    [line] = [str(each.message) for each in caught]
    assert line.startswith(
        f"12 of 15 images in {folder} cannot be decoded and are left out: 00.png (unknown format), "
    )
    assert line.endswith("and 2 more")
    for number in (12, 13):
        (folder / f"{number}.png").unlink()
    line = refusal(folder)
    assert f"{folder}: 3 images are needed" in line
    assert "not 1; 12 cannot be decoded: 00.png (unknown format)" in line
    (folder / "14.png").unlink()
    assert f"cannot decode 12 images in {folder}: 00.png" in refusal(folder)


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    """Which images there are must not depend on a disk that does not answer for a moment."""
    images = ImageFiles(tmp_path, ["gone.png"], (1, 3, 8, 8), None)
    with pytest.raises(DataError, match=r"cannot read the image .*gone.png: No such file") as caught:
        images[np.array([0])]
    assert not isinstance(caught.value, DamagedFilesError)


def test_images_have_the_names_of_their_files(tmp_path: Path) -> None:
    names = ["a b/1.png", "a/1.jpg", "a/1.png", "é.png", "line\nbreak.png", os.fsdecode(b"latin\xe9.png"), "[x].PNG"]
    for value, name in enumerate(names):
        save(tmp_path / "photos" / name, (value, value, value))
    dataset = load_folder(tmp_path / "photos")
    assert names_of(dataset) == sorted(names, key=lambda name: Path(name))
    parts = torch.cat([dataset.train.images, dataset.validation.images])
    positions = source_positions(dataset).tolist()
    assert dataset.names is not None
    assert dataset.names.at(positions) == [names[round(value)] for value in parts[:, 0, 0, 0].tolist()]


def names_of(dataset: Dataset) -> list[str]:
    assert dataset.names is not None
    count = len(dataset.train.images) + len(dataset.validation.images)
    return dataset.names.at(range(count))


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
