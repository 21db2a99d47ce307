"""Looking closely at trained models from Python: `raygen.sample`, `encode`, `score` and others like them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raygen.api.loading import ModelPlace, load_images, loaded, select_images, with_prior
from raygen.errors import SpecError
from raygen.protocol import FittedPrior

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from raygen.anomaly import Scores
    from raygen.data import Split
    from raygen.inspection import Reconstructions
    from raygen.latents import Latents
    from raygen.restoration import Restored
    from raygen.results import TrainedModel

SAMPLES = 64
RECONSTRUCTIONS = 32
ROWS, STEPS = 8, 10


def sample(
    model: ModelPlace | TrainedModel,
    count: int = SAMPLES,
    *,
    seed: int = 0,
    prior: FittedPrior | None = None,
    components: int | None = None,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Tensor:
    """Images [N, C, H, W] in [0, 1] from latents fixed by `seed`, drawn from the model's prior or a fitted mixture.

    Raises RunError if there is no such model, or it has no prior.
    """
    return with_prior(loaded(model, device, storage), prior, components).sample(count, seed=seed)


def reconstruct(
    model: ModelPlace | TrainedModel,
    count: int = RECONSTRUCTIONS,
    *,
    data: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Reconstructions:
    """The first validation images with their reconstructions.

    Raises RunError if there is no such model or it has no encoder, SpecError and DataError for images that do not fit.
    """
    from raygen import inspection

    trained = loaded(model, device, storage)
    inspection.require_encoder(trained)
    if count < 1:
        raise SpecError(f"1 image or more is reconstructed, not {count}")
    dataset = load_images(trained, data=data, data_root=data_root, image_size=image_size)
    images, rebuilt = inspection.reconstruct(trained, dataset.validation.images[:count])
    return inspection.Reconstructions(images, rebuilt, dataset.name)


def interpolate(
    model: ModelPlace | TrainedModel,
    *,
    rows: int = ROWS,
    steps: int = STEPS,
    seed: int = 0,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Tensor:
    """Images [rows, steps, C, H, W] in [0, 1]: each row leads from sample to sample.

    For a model that has no prior from one validation image to another. Raises as `reconstruct` does.
    """
    from raygen import inspection

    trained = loaded(model, device, storage)
    between = load_images(trained).validation.images if trained.prior is None else None
    images = inspection.interpolate(trained, between, steps, rows, seed)
    return images.reshape(rows, steps, *images.shape[1:])


def encode(
    model: ModelPlace | TrainedModel,
    *,
    split: Split | Literal["all"] | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Latents:
    """The latents of images, with what is known of each: of validation images, or of all of another data set.

    Raises as `reconstruct` does.
    """
    from raygen import inspection, latents

    trained = loaded(model, device, storage)
    inspection.require_encoder(trained)
    chosen = select_images(trained, split, data=data, data_root=data_root, image_size=image_size)
    return latents.encode(trained, chosen)


def decode(
    model: ModelPlace | TrainedModel,
    latents: str | Path | Latents | Tensor | NDArray[np.floating[Any]],
    *,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Tensor:
    """Images [N, C, H, W] in [0, 1] of latents [N, D]: numbers, what `encode` returned, or a file of `raygen encode`.

    Raises RunError if there is no such model or it has no decoder for them, DataError for latents that do not fit it.
    """
    import torch

    from raygen import latents as stored

    trained = loaded(model, device, storage)
    if isinstance(latents, str | Path):
        values = stored.read(trained, Path(latents)).values
    else:
        given = latents.values if isinstance(latents, stored.Latents) else latents
        values = torch.as_tensor(given).detach().cpu()
    return torch.cat(list(stored.decode(trained, values)))


def score(
    model: ModelPlace | TrainedModel,
    *,
    split: Split | Literal["all"] | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
    false_alarms: float | None = None,
    seed: int = 0,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Scores:
    """How strange each image is to the model: its negative ELBO, or its reconstruction error.

    With `false_alarms` also a threshold that at most this part of normal images exceeds, calibrated on those for
    validation. Raises as `reconstruct` does, and SpecError for a part that so few images cannot tell.
    """
    from raygen import anomaly, inspection

    trained = loaded(model, device, storage)
    inspection.require_encoder(trained)
    chosen = select_images(trained, split, data=data, data_root=data_root, image_size=image_size)
    normal = None if false_alarms is None else load_images(trained, data_root=data_root)
    return anomaly.score(trained, chosen, normal, false_alarms, seed)


def restore(
    model: ModelPlace | TrainedModel,
    data: str | Path,
    *,
    clean: str | Path | None = None,
    device: str = "auto",
    storage: str | Path | None = None,
) -> Restored:
    """What a model trained with data.corruption makes of a folder of damaged images, under the names of their files.

    `clean` is a folder of their originals, by which the quality is told. Raises RunError if there is no such model or
    it restores none, DataError for images that do not fit it.
    """
    from raygen import restoration

    return restoration.restore(loaded(model, device, storage), Path(data), None if clean is None else Path(clean))
