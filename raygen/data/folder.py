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
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raygen.data.images import Images, Labelled, square
from raygen.data.source import Source
from raygen.errors import DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
CAMERA_FORMATS = {"JPEG", "MPO"}  # their EXIF orientation is in the header, and cameras do write it


@dataclass(frozen=True)
class ImageFiles:
    """Image files as uint8 [N, C, H, W] in 0..255, decoded in threads when indexed.

    Transparency is dropped, photographs are turned upright, and only the first frame of an animation is read.
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
        grey = self.shape[1] == 1
        with _opened(path) as image:
            if self.image_size is not None:
                # Lets the JPEG decoder skip detail that the resize would throw away.
                image.draft(None, (2 * self.image_size, 2 * self.image_size))
            upright = ImageOps.exif_transpose(image) if image.format in CAMERA_FORMATS else image
            pixels = _to_8_bit(upright).convert("L" if grey else "RGB")
            if self.image_size is not None:
                pixels = square(pixels, self.image_size)
            array = np.asarray(pixels)
        return array[None] if grey else array.transpose(2, 0, 1)


def source(folder: Path, image_size: int | None) -> Source:
    """The images of a folder; raises DataError if there are none."""
    files = image_files(folder)
    return Source(fingerprint(folder, files), partial(read_with_classes, folder, files, image_size))


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


def read(files: list[Path], image_size: int | None) -> Images:
    """Read the headers of the files: grey if all are grey, else RGB; pixels are decoded later.

    Raises DataError if a file is no image, or if sizes differ and no `image_size` is given.
    """
    grey = True
    first: tuple[int, int] | None = None
    for path in files:
        with _opened(path) as image:
            grey = grey and image.mode in GREY_MODES
            size = _upright_size(image)
        first = first or size
        if size != first and image_size is None:
            raise DataError(
                f"{files[0]} is {first[0]}x{first[1]} but {path} is {size[0]}x{size[1]}; "
                "crop and resize all images to one size, for example with --image-size 64"
            )
    assert first is not None, "image_files() returns at least one file"
    width, height = first if image_size is None else (image_size, image_size)
    return ImageFiles(files, (len(files), 1 if grey else 3, height, width), image_size)


def read_with_classes(folder: Path, files: list[Path], image_size: int | None) -> Images:
    """What `read` returns, with labels where all files are in two or more sub-folders: one class each, by name."""
    images = read(files, image_size)
    classes = [path.relative_to(folder).parts[:-1][:1] for path in files]
    names = sorted(set(classes))
    if () in names or len(names) < 2:
        return images
    return Labelled(images, np.array([names.index(name) for name in classes], dtype=np.int64))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; whatever its decoder raises becomes a DataError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    # Decoders raise whatever damaged bytes lead them to: OSError, SyntaxError, ValueError, struct.error...
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else " ".join(str(error).split())
        raise DataError(f"cannot decode the image {path} ({reason}); repair it or remove it") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the image is turned upright, from the header alone."""
    turned = image.format in CAMERA_FORMATS and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (image.height, image.width) if turned else image.size


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey to 8 bits and a palette with transparency to RGBA, which convert() does not do well."""
    if image.mode.startswith("I"):  # convert("L") would turn all above 255 into white
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no known range")
    return image.convert("RGBA") if "transparency" in image.info and image.mode == "P" else image
