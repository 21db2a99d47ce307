"""Latents in a file: written of images by their model, and turned into images again."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygen import files, inspection
from raygen.errors import DataError
from raygen.inspection import CHUNK_IMAGES, Selection, require_encoder, some
from raygen.metrics import compression, psnr, ssim
from raygen.models._base import Reconstructor
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


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Latents float32 [N, D] of the images `chosen`, by the model whose weights have the digest `weights`."""

    values: Tensor
    chosen: Selection
    weights: str

    def save(self, path: Path) -> None:
        """Write them as NPZ with what is known of each image, whole or not at all.

        The digest of the weights tells whose they are. Raises RunError if no file can be written.
        """
        chosen = self.chosen
        known = {
            "labels": None if chosen.labels is None else chosen.labels.numpy(),
            "names": None if (names := chosen.names()) is None else np.array(names),
        }
        with files.whole(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                latents=self.values.numpy(),
                index=chosen.positions.numpy(),
                split=np.array(chosen.part_names),
                order=np.array(ORDER),
                weights=np.array(self.weights),
                **{name: array for name, array in known.items() if array is not None},
            )


def sizes(trained: TrainedModel, count: int) -> Sizes:
    """The bytes of `count` images and of their latents."""
    pixels = torch.Size(trained.model.shape).numel()
    return Sizes(pixel_bytes=count * pixels, latent_bytes=count * compression.LATENT_BYTES * trained.model.latent_dim)


def encode(trained: TrainedModel, chosen: Selection) -> Latents:
    """The latents of images, a posterior's means, on the CPU; raises RunError without an encoder."""
    return Latents(values=inspection.encode(trained, chosen.images), chosen=chosen, weights=_digest(trained))


def round_trip(trained: TrainedModel, chosen: Selection) -> RoundTrip:
    """What encoding and decoding leaves of images, of 2,000 of them if there are more."""
    images = some(chosen, MEASURED_IMAGES).images.float().div_(255)
    with trained.at_work():
        return RoundTrip(
            psnr_db=psnr.compute(trained.model, images, SEED),
            ssim=ssim.compute(trained.model, images, SEED),
            images=len(images),
        )


def decode(trained: TrainedModel, values: Tensor) -> Iterator[Tensor]:
    """The images of latents [N, D] in batches [B, C, H, W] in [0, 1] on the CPU, in their order.

    Raises RunError without a decoder for them, DataError for latents that do not fit the model, both at once.
    """
    decoder = require_encoder(trained)
    _check(trained, values.double().numpy(), "latents")
    return (_decoded(trained, decoder, chunk) for chunk in values.to(torch.float32).split(CHUNK_IMAGES))


def _decoded(trained: TrainedModel, decoder: Reconstructor, chunk: Tensor) -> Tensor:
    with trained.at_work():
        return decoder.decode(chunk.to(trained.device)).float().cpu()


def _digest(trained: TrainedModel) -> str:
    """Sixteen hexadecimal digits that tell a model's weights from others."""
    digest = hashlib.sha256()
    for weight in trained.model.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a file holds: latents float32 [N, D] and, if they are known, labels int64 [N] and N names."""

    values: Tensor
    labels: NDArray[np.int64] | None
    names: list[str] | None


def read(trained: TrainedModel, path: Path) -> Encoded:
    """What `Latents.save` has written.

    Raises RunError if the model has no decoder for it, DataError if the file holds none that fits.
    """
    require_encoder(trained)
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            found = dict(arrays) if isinstance(arrays, np.lib.npyio.NpzFile) else {}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "damaged, or of another format"
        raise DataError(f"cannot read the latents {path} ({reason}); `raygen encode` writes such a file") from error
    if "latents" not in found:
        raise DataError(f"{path} holds no array `latents`: name a .npz file that `raygen encode` has written")
    latents = found["latents"]
    if "weights" in found and str(found["weights"]) != _digest(trained):
        raise DataError(f"{path} was encoded by a model with other weights: name the run or folder of that one")
    _check(trained, latents, f"{path}: `latents`")
    labels = found.get("labels")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != latents.shape[:1]):
        raise DataError(
            f"{path}: `labels` is {labels.dtype} of shape {list(labels.shape)}; the classes of {len(latents)} latents "
            f"are integers of shape [{len(latents)}]: correct the array or leave it out"
        )
    return Encoded(
        values=torch.from_numpy(latents.astype(np.float32)),
        labels=None if labels is None else labels.astype(np.int64),
        names=_checked_names(path, found["names"], len(latents)) if "names" in found else None,
    )


def _check(trained: TrainedModel, latents: NDArray[Any], what: str) -> None:
    """Raise DataError for latents that the model cannot decode."""
    latent_dim = trained.model.latent_dim
    if latents.dtype.kind != "f" or latents.ndim != 2 or latents.shape[1] != latent_dim or len(latents) == 0:
        raise DataError(
            f"{what} is {latents.dtype} of shape {list(latents.shape)}; this model decodes floats of shape "
            f"[N, {latent_dim}]: name the model that encoded them"
        )
    # What float32 cannot hold is not finite there.
    if not (np.abs(latents) <= np.finfo(np.float32).max).all():
        raise DataError(f"{what} holds values that are not finite: encode the images anew")


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
