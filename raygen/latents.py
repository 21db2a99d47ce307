"""Latents in a file: written of images by their model, and turned into images again."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygen import files, image_files
from raygen.errors import DataError
from raygen.inspection import CHUNK_IMAGES, Selection, encode, require_encoder, some
from raygen.metrics import compression, psnr, ssim
from raygen.results import TrainedModel

ORDER = (
    "row i is the image at position index[i] of the source, counted from 0: sorted paths, of which names[i] is one, "
    "or rows of an array"
)
MEASURED_IMAGES = 2000
SEED = 0
"""Asked for by all metrics; these draw nothing."""


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """What `images` of N are after encoding and decoding: mean PSNR in decibels, mean SSIM in [-1, 1]."""

    psnr_db: float
    ssim: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of images as 8-bit pixels and of their latents as float32, no entropy coder being involved."""

    pixel_bytes: int
    latent_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller the latents are; below 1 they are larger."""
        return self.pixel_bytes / self.latent_bytes


def sizes(trained: TrainedModel, count: int) -> Sizes:
    """The bytes of `count` images and of their latents."""
    pixels = torch.Size(trained.model.shape).numel()
    return Sizes(pixel_bytes=count * pixels, latent_bytes=count * compression.LATENT_BYTES * trained.model.latent_dim)


def save(trained: TrainedModel, chosen: Selection, path: Path) -> None:
    """Write the latents of images as NPZ, whole or not at all: float32 [N, D], and what is known of each image.

    A digest of the weights tells whose they are. Raises RunError without an encoder, or where no file can be written.
    """
    latents = encode(trained, chosen.images).numpy()
    known = {
        "labels": None if chosen.labels is None else chosen.labels.numpy(),
        "names": None if (names := chosen.names()) is None else np.array(names),
    }
    with files.whole(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            latents=latents,
            index=chosen.positions.numpy(),
            split=np.array(chosen.part_names),
            order=np.array(ORDER),
            weights=np.array(_digest(trained)),
            **{name: array for name, array in known.items() if array is not None},
        )


def round_trip(trained: TrainedModel, chosen: Selection) -> RoundTrip:
    """What encoding and decoding leaves of images, of 2,000 of them if there are more."""
    images = some(chosen, MEASURED_IMAGES).images.float().div_(255)
    return RoundTrip(
        psnr_db=psnr.compute(trained.model, images, SEED),
        ssim=ssim.compute(trained.model, images, SEED),
        images=len(images),
    )


def decode(trained: TrainedModel, source: Path, output: Path) -> int:
    """Write the images of the latents in a file, in their order, with their labels and names, and return their number.

    Raises DataError if the file holds none that fit the model, RunError without a decoder for them, and as
    `image_files.write` does.
    """
    decoder = require_encoder(trained)
    encoded = _read(source, trained)
    latents = encoded.latents
    shape = (len(latents), *trained.model.shape)
    batches = (decoder.decode(chunk).float() for chunk in latents.split(CHUNK_IMAGES))
    image_files.write(output, batches, shape, labels=encoded.labels, names=encoded.names)
    return len(latents)


def _digest(trained: TrainedModel) -> str:
    """Sixteen hexadecimal digits that tell a model's weights from others."""
    digest = hashlib.sha256()
    for weight in trained.model.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """Latents float32 [N, D] and, if the file holds them, labels int64 [N] and N names."""

    latents: Tensor
    labels: NDArray[np.int64] | None
    names: list[str] | None


def _read(path: Path, trained: TrainedModel) -> _Encoded:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            found = dict(arrays) if isinstance(arrays, np.lib.npyio.NpzFile) else {}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "damaged, or of another format"
        raise DataError(f"cannot read the latents {path} ({reason}); `raygen encode` writes such a file") from error
    if "latents" not in found:
        raise DataError(f"{path} holds no array `latents`: name a .npz file that `raygen encode` has written")
    latents, latent_dim = found["latents"], trained.model.latent_dim
    if latents.dtype.kind != "f" or latents.ndim != 2 or latents.shape[1] != latent_dim or len(latents) == 0:
        raise DataError(
            f"{path}: `latents` is {latents.dtype} of shape {list(latents.shape)}; this model decodes floats of shape "
            f"[N, {latent_dim}]: name the model that encoded them"
        )
    if "weights" in found and str(found["weights"]) != _digest(trained):
        raise DataError(f"{path} was encoded by a model with other weights: name the run or best/N folder of that one")
    if not np.isfinite(latents).all():
        raise DataError(f"{path}: `latents` holds values that are not finite: encode the images anew")
    labels = found.get("labels")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != latents.shape[:1]):
        raise DataError(
            f"{path}: `labels` is {labels.dtype} of shape {list(labels.shape)}; the classes of {len(latents)} latents "
            f"are integers of shape [{len(latents)}]: correct the array or leave it out"
        )
    return _Encoded(
        latents=torch.from_numpy(latents.astype(np.float32)),
        labels=None if labels is None else labels.astype(np.int64),
        names=_checked_names(path, found["names"], len(latents)) if "names" in found else None,
    )


def _checked_names(path: Path, names: NDArray[Any], count: int) -> list[str]:
    """Names that files below one folder may have: whoever wrote them, nothing is written beside that folder."""
    if names.dtype.kind != "U" or names.shape != (count,):
        raise DataError(
            f"{path}: `names` is {names.dtype} of shape {list(names.shape)}; the names of {count} latents are texts "
            f"of shape [{count}]: correct the array or leave it out"
        )
    found: list[str] = names.tolist()
    for name in found:
        if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")) or not _is_encodable(name):
            raise DataError(
                f"{path}: `names` holds {name!r}, which is no path of a file in a folder: correct the array or leave "
                "it out"
            )
    if len(set(found)) < count:
        raise DataError(f"{path}: `names` holds one name twice: correct the array or leave it out")
    return found


def _is_encodable(name: str) -> bool:
    """Whether the file system's encoding has it."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True
