"""A GAN whose generator begins as an autoencoder's decoder.

An autoencoder's codes do not follow a GAN's prior. So the decoder is given latents that have the codes' mean μ and
covariance Σ, the plainest of the densities that Ghosh et al. 2020, "From variational to deterministic autoencoders",
section 4, fit after the training. Its first layer, W h + b, becomes W Σ^½ z / σ + (W μ + b) for a prior of mean 0 and
standard deviation σ: no parameter is added, and the generator is one like any other.
"""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from raygen import results
from raygen.data import Dataset
from raygen.errors import RunError, SpecError
from raygen.metrics._chunks import on_device
from raygen.models._base import GaussianEncoder, Model, Reconstructor
from raygen.models._options import ModelOptions
from raygen.results import TrainedModel
from raygen.spec import TrainSpec, WarmStart
from raygen.training import checkpoint

MOST_IMAGES = 20_000  # of the training images, at most, to take the moments over
CHUNK_IMAGES = 500
UNIFORM_STD = 1 / math.sqrt(3)  # of numbers uniform in (-1, 1)


def from_decoder(name: str, source: TrainedModel, spec: TrainSpec, dataset: Dataset) -> tuple[TrainSpec, bytes]:
    """The spec of a GAN that starts from the autoencoder of that name, and its first weights, safetensors.

    The codes are those of the data set's training images. Raises SpecError if generator and decoder are not built
    alike, or images are of another shape; RunError without an autoencoder, or for codes that are not finite.
    """
    if spec.model.name != "gan":
        raise SpecError(f"--from is for gan, whose generator begins as a decoder; leave it out with {spec.model.name}")
    decoder = getattr(source.model, "decoder", None)
    if not isinstance(decoder, nn.Sequential):
        raise RunError(f"{name} holds a model of {source.spec.model.name}; --from takes a run of ae, vae or vaegan")
    results.check_shape(source, dataset)
    _check_form(spec.model, source.spec.model, name)
    with source.at_work():
        mean, covariance = _moments(source.model, dataset.train.images[:MOST_IMAGES])
    if not covariance.isfinite().all():
        raise RunError(f"{name}: its codes are not finite, and so have no moments: train with a lower --lr")
    root = _square_root(covariance) / (UNIFORM_STD if spec.model.prior_name == "uniform" else 1.0)
    weights = save(_folded(decoder, mean, root))
    start = WarmStart(
        source=name,
        configuration=checkpoint.digest(source.spec.configuration().encode()),
        digest=checkpoint.digest(weights),
    )
    return spec.warm_started(start), weights


def _check_form(own: ModelOptions, source: ModelOptions, name: str) -> None:
    """Raise SpecError that says what to set for the generator to be built like the decoder."""
    had = _form(own)
    lacking = {path: value for path, value in _form(source).items() if had.get(path) != value}
    if lacking:
        settings = (
            shlex.quote(f"{path}={value if isinstance(value, str) else json.dumps(value)}")
            for path, value in lacking.items()
        )
        raise SpecError(
            f"the generator is not built like the decoder in {name}: type "
            + " ".join(f"--set {setting}" for setting in settings)
        )


def _form(options: ModelOptions) -> dict[str, Any]:
    """What says how a decoder or generator is built, by the field's path."""
    by_arch = (
        {"model.decoder_hidden": options.decoder_sizes} if options.arch == "mlp" else {"model.width": options.width}
    )
    return {
        "model.arch": options.arch,
        "model.latent_dim": options.latent_dim,
        **by_arch,
        "model.activation": options.activation,
    }


def _moments(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D], in float64 on the CPU, of the codes of images uint8 [N, C, H, W].

    Of a Gaussian encoder's aggregate posterior: the covariance of its means, and on the diagonal its mean variances.
    """
    chunks = on_device(model.device, CHUNK_IMAGES, images)
    found = [_posterior(model, chunk.float().div_(255)) for (chunk,) in chunks]
    means, variances = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    centred = means - means.mean(dim=0)
    return means.mean(dim=0), centred.T @ centred / len(means) + variances.mean(dim=0).diag()


def _posterior(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [B, D], in float64, of what is decoded of images [B, C, H, W] in [0, 1]."""
    if isinstance(model, GaussianEncoder):
        mean, log_variance = model.posterior(images)
        return mean.double(), log_variance.double().exp()
    assert isinstance(model, Reconstructor)
    codes = model.encode(images).double()
    return codes, torch.zeros_like(codes)


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root [D, D] of a covariance, which may be singular: a code may have units that are dead."""
    variances, directions = torch.linalg.eigh(covariance)
    root: Tensor = directions * variances.clamp(min=0).sqrt() @ directions.T
    return root


def _folded(decoder: nn.Sequential, mean: Tensor, root: Tensor) -> dict[str, Tensor]:
    """The decoder's weights as a generator's: its first layer is given `mean` + `root` z in the place of z."""
    first = decoder[0]
    assert isinstance(first, nn.Linear), "a decoder begins with a dense layer"
    weight, bias = first.weight.double().cpu(), first.bias.double().cpu()
    folded = {"0.weight": (weight @ root).float(), "0.bias": (bias + weight @ mean).float()}
    weights = {**decoder.state_dict(), **folded}
    return {f"generator.{name}": tensor.cpu().contiguous() for name, tensor in weights.items()}
