"""A folder of images, with or without class sub-folders."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from raygen import interruption
from raygen.data.images import Described, Images, square
from raygen.data.source import Source
from raygen.errors import DamagedFilesError, DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY_MODES = {"1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L", "I;16N"}
FEW_BITS = {
    "L;2": 85,
    "L;4": 17,
}  # what Pillow multiplies such pixels by, but not the transparent value that they name


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder as uint8 [N, C, H, W] in 0..255, decoded in threads when indexed.

    What is transparent shows white, images are turned upright, and only the first frame of an animation is read.
    Raises DamagedFilesError, naming all of those asked for that cannot be decoded, and DataError for others.
    """

    folder: Path
    names: Sequence[str]
    shape: tuple[int, ...]
    image_size: int | None  # None: the files have the size that `shape` says

    def __getitem__(self, indices: NDArray[np.intp], /) -> NDArray[np.uint8]:
        names = [self.names[index] for index in indices]
        found = {}
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
            try:
                for name, pixels_or_reason in pool.map(self._decoded_or_reason, names):
                    interruption.check()
                    found[name] = pixels_or_reason
            finally:
                pool.shutdown(cancel_futures=True)
        damaged = {name: each for name, each in found.items() if isinstance(each, str)}
        if damaged:
            raise DamagedFilesError(self.folder, damaged)
        return np.stack([found[name] for name in names]).reshape(-1, *self.shape[1:])

    def _decoded_or_reason(self, name: str) -> tuple[str, NDArray[np.uint8] | str]:
        """The name with its pixels, or with the reason why it cannot be decoded."""
        try:
            return name, self._decode(name)
        except DamagedFilesError as error:
            return name, error.reasons[name]

    def _decode(self, name: str) -> NDArray[np.uint8]:
        """Pixels of one file, [C, H, W]."""
        _, channels, height, width = self.shape
        path = self.folder / name
        with _opened(self.folder, name) as image:
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
    names = image_files(folder)

    def read_without(damaged: Mapping[str, str]) -> Images:
        return read(folder, remaining(folder, names, damaged), image_size)

    return Source(fingerprint(folder, names), partial(read, folder, names, image_size), read_without=read_without)


def image_files(folder: Path) -> list[str]:
    """Names of the image files below a folder, relative to it with "/" between their parts, sorted by these parts.

    Hidden files, what is in hidden folders, and links to folders are left out. Raises DataError if there are none or a
    folder cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = parent.removeprefix(os.fspath(folder)).lstrip("/")  # with paths it takes three times as long
        found += [
            os.path.join(within, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    if not found:
        raise DataError(f"{folder} holds no images; these are read: {' '.join(sorted(SUFFIXES))}")
    return sorted(found, key=lambda name: name.split("/"))


def remaining(folder: Path, names: list[str], damaged: Mapping[str, str]) -> list[str]:
    """The names without those of damaged files; raises DamagedFilesError naming these if no others are left."""
    left = [name for name in names if name not in damaged]
    if not left:
        raise DamagedFilesError(folder, damaged)
    return left


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """A text that changes when the folder is moved or one of its files added, removed, renamed or written.

    `names` are relative to the folder. Raises DataError for a file that cannot be read.
    """
    root = os.fspath(folder)  # strings: with paths, a folder of 200,000 files takes three times as long
    digest = hashlib.sha256(os.fsencode(f"{root}\n"))
    for name in names:
        interruption.check()
        try:
            status = os.stat(os.path.join(root, name))
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error.strerror}") from error
        digest.update(os.fsencode(f"{name}\t{status.st_size}\t{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def read(folder: Path, names: list[str], image_size: int | None) -> Described:
    """Read the headers of the files: grey if all are grey, else RGB; nearly all pixels are decoded later.

    They have labels if all are in two or more sub-folders: one class each, by name. Raises DamagedFilesError naming
    all files that are seen to be damaged, DataError if sizes differ and no `image_size` is given, or if pixels would
    be read as black that are not.
    """
    headers = _headers(folder, names)
    ((height, width), first), *others = headers.sizes.items()
    if others and image_size is None:
        (other_height, other_width), other = others[0]
        raise DataError(
            f"{folder / first} is {width}x{height} but {folder / other} is {other_width}x{other_height}; "
            "crop and resize all images to one size, for example with --image-size 64"
        )
    _check_bright(folder, names, headers.deep)
    if image_size is not None:
        height = width = image_size
    images = ImageFiles(folder, names, (len(names), 1 if headers.are_grey else 3, height, width), image_size)
    return Described(images, _classes(names), names)


def sizes(folder: Path, names: list[str]) -> set[tuple[int, int]]:
    """Height and width of the files' images once they are turned upright; raises as `read` does."""
    return set(_headers(folder, names).sizes)


@dataclass(frozen=True)
class _Headers:
    """What the headers of files say: the first file of each height and width, and those of more than 8 bits."""

    are_grey: bool
    sizes: dict[tuple[int, int], str]
    deep: list[str]


def _headers(folder: Path, names: list[str]) -> _Headers:
    damaged: dict[str, str] = {}
    are_grey = True
    sizes: dict[tuple[int, int], str] = {}
    deep = []
    for name in names:
        interruption.check()
        try:
            with _opened(folder, name) as image:
                are_grey = are_grey and image.mode in GREY_MODES
                width, height = _upright_size(image)
                sizes.setdefault((height, width), name)
                if image.mode.startswith("I") or ";16" in _raw_mode(image):
                    deep.append(name)
        except DamagedFilesError as error:
            damaged |= error.reasons
    if damaged:
        raise DamagedFilesError(folder, damaged)
    return _Headers(are_grey, sizes, deep)


def _classes(names: list[str]) -> NDArray[np.int64] | None:
    """The class of each file by its sub-folder, [N]; None if they are not all in two or more of them."""
    folders = [name.split("/")[:-1][:1] for name in names]
    classes = sorted({folder[0] for folder in folders if folder})
    if [] in folders or len(classes) < 2:
        return None
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[folder[0]] for folder in folders], dtype=np.int64)


def _check_bright(folder: Path, names: list[str], deep: list[str]) -> None:
    """Raise DataError for masks of 0 and 1, and for `deep` files whose pixels do not fill their 16 bits.

    One bright image is enough, so that as a rule only one is decoded.
    """
    if deep and _brightest(folder, deep, enough=16) < 16:
        raise DataError(
            f"the 16-bit images in {folder} hold no value above 4095, and 65535 is white: multiply the values of all "
            "by 16 if their white is 4095, as in 12 bits, or by 257 if it is 255"
        )
    if _brightest(folder, names, enough=2) == 1:
        raise DataError(
            f"all pixels of the images in {folder} are 0 or 1, and 255 is white: multiply all values by 255"
        )


def _brightest(folder: Path, names: list[str], enough: int) -> int:
    """The largest of all values in 8 bits, alpha apart; what comes after a file that has `enough` is not looked at.

    Raises DamagedFilesError naming all that were met.
    """
    brightest = 0
    damaged: dict[str, str] = {}
    for name in names:
        interruption.check()
        try:
            with _opened(folder, name) as image:
                pixels = np.asarray(_in_8_bits(image, folder / name).convert("RGB"))
        except DamagedFilesError as error:
            damaged |= error.reasons
            continue
        brightest = max(brightest, int(pixels.max()))
        if brightest >= enough:
            break
    if damaged:
        raise DamagedFilesError(folder, damaged)
    return brightest


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[Image.Image]:
    """Open an image file; whatever its decoder raises becomes a DamagedFilesError that names the file.

    What the system raises becomes a DataError: that the file cannot be read now does not say that it is damaged.
    """
    path = folder / name
    try:
        # Not by its name: Pillow maps such files, which mixes up the rows of an uncompressed TIFF that is turned.
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except DataError:
        raise
    # Decoders raise whatever damaged bytes lead them to: OSError, SyntaxError, ValueError, struct.error...
    except Exception as error:
        # Of memory that lacks Pillow tells in words alone.
        lacks_memory = isinstance(error, MemoryError) or "out of memory" in str(error)
        if lacks_memory or (isinstance(error, OSError) and error.errno is not None):
            reason = getattr(error, "strerror", None) or "out of memory"
            raise DataError(f"cannot read the image {path}: {reason}") from error
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else " ".join(str(error).split()) or type(error).__name__
        raise DamagedFilesError(folder, {name: reason}) from error


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


def _check_kind(image: Image.Image, path: Path) -> None:
    """Raise DataError for pixels whose white is not known, or that Pillow would read as others."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # of which some versions of Pillow read 16 bits so
        raise DataError(f"{path} has signed or 32-bit integers, whose white is not known: save it with 8 or 16 bits")
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if white_is_zero and image.mode[0] in "IF":
        raise DataError(f"{path} has 0 for white in more than 8 bits, which is not read: save it with 0 for black")
    if "transparency" in image.info and image.mode == "RGB" and ";16" in _raw_mode(image):
        raise DataError(f"{path} names a transparent colour in 16 bits, which is not read: save it with 8 bits")


def _in_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """The image turned upright, its pixels in 8 bits: of 16 the upper ones, of floats in [0, 1] 255 times the value.

    Raises DataError for other pixels.
    """
    _check_kind(image, path)
    raw_mode = _raw_mode(image)
    image.load()  # Pillow turns a TIFF by itself
    upright = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
    transparent = upright.info.get("transparency")
    if upright.mode == "F":
        return _from_floats(np.asarray(upright), path)
    if upright.mode.startswith("I"):
        values = np.asarray(upright)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        return grey
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
