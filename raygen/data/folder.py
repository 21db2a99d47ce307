"""A folder of images, with or without class sub-folders."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from raygen.data.images import Images, Labelled, square
from raygen.data.source import Source
from raygen.errors import DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY_MODES = {"1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L", "I;16N"}
FEW_BITS = {
    "L;2": 85,
    "L;4": 17,
}  # what Pillow multiplies such pixels by, but not the transparent value that they name


@dataclass(frozen=True)
class ImageFiles:
    """Image files as uint8 [N, C, H, W] in 0..255, decoded in threads when indexed.

    What is transparent shows white, images are turned upright, and only the first frame of an animation is read.
    Raises DataError if a file cannot be decoded.
    """

    paths: list[Path]
    shape: tuple[int, ...]
    image_size: int | None  # None: the files have the size that `shape` says

    def __getitem__(self, indices: NDArray[np.intp], /) -> NDArray[np.uint8]:
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
            images = list(pool.map(self._decode, (self.paths[index] for index in indices)))
        return np.stack(images).reshape(-1, *self.shape[1:])

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        """Pixels of one file, [C, H, W]."""
        _, channels, height, width = self.shape
        with _opened(path) as image:
            if self.image_size is not None:
                # Lets the JPEG decoder skip detail that the resize would throw away.
                image.draft(None, (2 * self.image_size, 2 * self.image_size))
            pixels = _on_white(_in_8_bits(image, path)).convert("L" if channels == 1 else "RGB")
            if self.image_size is not None:
                pixels = square(pixels, self.image_size)
            if pixels.size != (width, height):  # turned by a mark behind its pixels, which is not read beforehand
                raise DataError(
                    f"{path} is {pixels.width}x{pixels.height} once turned upright, other images {width}x{height}; "
                    "crop and resize all images to one size, for example with --image-size 64"
                )
            array = np.asarray(pixels)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)


def source(folder: Path, image_size: int | None) -> Source:
    """The images of a folder; raises DataError if there are none."""
    files = image_files(folder)
    return Source(fingerprint(folder, files), partial(read, folder, files, image_size))


def image_files(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by path; hidden files and links to folders are left out.

    Raises DataError if there are none or a folder cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    if not files:
        raise DataError(f"{folder} holds no images; these are read: {' '.join(sorted(SUFFIXES))}")
    return sorted(files)


def fingerprint(folder: Path, files: list[Path]) -> str:
    """A text that changes when the folder is moved or a file added, removed, renamed or written; raises DataError."""
    digest = hashlib.sha256(os.fsencode(f"{folder}\n"))
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        line = f"{path.relative_to(folder).as_posix()}\t{status.st_size}\t{status.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def read(folder: Path, files: list[Path], image_size: int | None) -> Images:
    """Read the headers of the files: grey if all are grey, else RGB; nearly all pixels are decoded later.

    They have labels if all are in two or more sub-folders: one class each, by name. Raises DataError if a file is no
    image, if sizes differ and no `image_size` is given, or if pixels would be read as black that are not.
    """
    grey = True
    first: tuple[int, int] | None = None
    deep = []
    for path in files:
        with _opened(path) as image:
            grey = grey and image.mode in GREY_MODES
            size = _upright_size(image)
            if image.mode.startswith("I") or ";16" in _raw_mode(image):
                deep.append(path)
        first = first or size
        if size != first and image_size is None:
            raise DataError(
                f"{files[0]} is {first[0]}x{first[1]} but {path} is {size[0]}x{size[1]}; "
                "crop and resize all images to one size, for example with --image-size 64"
            )
    assert first is not None, "image_files() returns at least one file"
    _check_bright(folder, files, deep)
    width, height = first if image_size is None else (image_size, image_size)
    images = ImageFiles(files, (len(files), 1 if grey else 3, height, width), image_size)
    labels = _classes(folder, files)
    return images if labels is None else Labelled(images, labels)


def _classes(folder: Path, files: list[Path]) -> NDArray[np.int64] | None:
    """The class of each file by its sub-folder, [N]; None if they are not all in two or more of them."""
    classes = [path.relative_to(folder).parts[:-1][:1] for path in files]
    names = sorted(set(classes))
    if () in names or len(names) < 2:
        return None
    return np.array([names.index(name) for name in classes], dtype=np.int64)


def _check_bright(folder: Path, files: list[Path], deep: list[Path]) -> None:
    """Raise DataError for masks of 0 and 1, and for `deep` files whose pixels do not fill their 16 bits.

    One bright image is enough, so that as a rule only one is decoded.
    """
    if deep and _brightest(deep, enough=16) < 16:
        raise DataError(
            f"the 16-bit images in {folder} hold no value above 4095, and 65535 is white: multiply the values of all "
            "by 16 if their white is 4095, as in 12 bits, or by 257 if it is 255"
        )
    if _brightest(files, enough=2) == 1:
        raise DataError(
            f"all pixels of the images in {folder} are 0 or 1, and 255 is white: multiply all values by 255"
        )


def _brightest(files: list[Path], enough: int) -> int:
    """The largest of all values in 8 bits, alpha apart; what comes after a file that has `enough` is not looked at."""
    brightest = 0
    for path in files:
        with _opened(path) as image:
            brightest = max(brightest, int(np.asarray(_in_8_bits(image, path).convert("RGB")).max()))
        if brightest >= enough:
            break
    return brightest


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; whatever its decoder raises becomes a DataError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    # Decoders raise whatever damaged bytes lead them to: OSError, SyntaxError, ValueError, struct.error...
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else " ".join(str(error).split())
        raise DataError(f"cannot decode the image {path} ({reason}); repair it or remove it") from error


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words; known until they are decoded."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    arguments = tiles[0][3] if tiles else ""
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else ""


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the image is turned upright, from the header alone."""
    size = image.size
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return size  # getexif() would decode the pixels to look behind them
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # some versions of Pillow have turned its size already
        size = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return size[::-1] if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else size


def _in_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """The image turned upright, its pixels in 8 bits: of 16 the upper ones, of floats in [0, 1] 255 times the value.

    Raises DataError for other pixels, and for a transparent value that Pillow does not find among its pixels.
    """
    raw_mode, has_16_bits = _raw_mode(image), image.format in ("PNG", "PPM")
    image.load()  # turns a TIFF
    upright = ImageOps.exif_transpose(image)
    transparent = upright.info.get("transparency")
    if upright.mode == "F":
        return _from_floats(np.asarray(upright), path)
    if upright.mode == "I" and not has_16_bits:
        raise DataError(f"{path} has signed or 32-bit integers, whose white is not known: save it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        values = np.asarray(upright)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        return grey
    if transparent is not None and ";16" in raw_mode:
        raise DataError(f"{path} names a transparent colour in 16 bits, which is not read: save it with 8 bits")
    if transparent is not None and raw_mode in FEW_BITS:
        upright.info["transparency"] = transparent * FEW_BITS[raw_mode]
    return upright


def _from_floats(values: NDArray[np.float32], path: Path) -> Image.Image:
    outside = values[~((values >= 0) & (values <= 1))]  # NaN is outside too
    if outside.size:
        raise DataError(f"{path} has float pixels, one of them {outside[0]:g}: scale them so that all are in [0, 1]")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """The image on white if it has an alpha channel, or a palette or colour that is transparent."""
    if not {"A", "a"} & set(image.getbands()) and "transparency" not in image.info:
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white
