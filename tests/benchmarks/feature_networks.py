"""How well Fréchet distances over the random network rank models, beside those over a network trained on labels.

    python -m tests.benchmarks.feature_networks --samples /tmp/samples

trains small models of all families on 6,000 images of Fashion-MNIST, good, bad and collapsed ones, draws 2,000
samples after each epoch, and prints Spearman's rank correlation between the distances over `classifier` and those over
each random network: among all checkpoints, the better half of them, and GANs alone. Samples that the folder holds from
an earlier call are not made again; what else lies there as FAMILY-NAME/EPOCH.npy (uint8 [N, 1, 28, 28]) is judged too.
About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raygen import data, models, prior
from raygen.data import DataOptions, Dataset
from raygen.errors import TrainingError
from raygen.metrics import _classifier, _features, frechet
from raygen.metrics._features import RandomNetwork
from raygen.models._base import ImageShape, Model, Sampler
from raygen.results import TrainedModel
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.loop import fit

TRAINING_IMAGES = 6_000
SAMPLES = 2_000
TRAININGS: dict[str, tuple[int, Mapping[str, Any]]] = {
    "gan-narrow": (4, {"model.width": 16}),
    "gan-dense": (6, {"model.arch": "mlp"}),
    "gan-hinge": (4, {"model.width": 16, "model.loss": "hinge", "model.spectral_norm": True}),
    "gan-collapsed": (4, {"model.width": 16, "model.discriminator_lr_scale": 1e-3}),
    "gan-fast": (3, {"model.width": 16, "optimizer.lr": 2e-2}),
    "aegan-narrow": (4, {"model.width": 16}),
    "vaegan-narrow": (3, {"model.width": 16}),
    "vae-default": (6, {}),
    "vae-two-latents": (4, {"model.latent_dim": 2}),
    "vae-strong-prior": (4, {"model.beta": 20.0}),
    "ae-default": (6, {}),
    "ae-four-latents": (4, {"model.latent_dim": 4, "optimizer.lr": 3e-3}),
}
"""Epochs and settings of each training, its family first in its name; an `ae` is sampled from a mixture."""

CHANNELS = _features.RANDOM_CHANNELS
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "version 1: last layer, 64 features": lambda: RandomNetwork(CHANNELS, 64, layers=1, groups=None),
    "last layer, 256 features": lambda: RandomNetwork(CHANNELS, 256, layers=1, groups=None),
    "two layers, 256 features": lambda: RandomNetwork(CHANNELS, 256, layers=2, groups=None),
    "two layers, GroupNorm, 64 features": lambda: RandomNetwork(CHANNELS, 64, layers=2, groups=8),
    "version 2: two layers, GroupNorm, 256 f.": lambda: RandomNetwork(CHANNELS, 256, layers=2, groups=8),
}
"""The random networks that are compared; the last is the one that trainings are judged over."""


def main() -> None:
    """Make the samples that are lacking, judge all of them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, help="folder where samples are kept, and found again")
    folder = parser.parse_args().samples
    torch.set_num_threads(1)
    dataset = data.load(DataOptions(source="fashion-mnist"))
    with tempfile.TemporaryDirectory() as temporary:
        samples = folder or Path(temporary)
        small = replace(dataset, train=replace(dataset.train, images=dataset.train.images[:TRAINING_IMAGES]))
        for name, (epochs, settings) in TRAININGS.items():
            if not (samples / name).is_dir():
                _train(name, epochs, settings, small, samples / name)
        paths = sorted(samples.glob("*/*.npy"))
        reference = dataset.validation.images[:SAMPLES].float() / 255
        classifier = _classifier.trained_on(dataset).network.features
        truth, _ = _distances(classifier, reference, paths)
        print(f"{len(paths)} checkpoints, Spearman's correlation with the distance over the classifier network\n")
        print(f"{'network':42}{'all':>8}{'better half':>14}{'gan':>8}{'gan, better half':>19}{'ms each':>10}")
        for name, build in NETWORKS.items():
            found, each_ms = _distances(build(), reference, paths)
            columns = " ".join(f"{value:>{width}.3f}" for value, width in _correlations(found, truth, paths))
            print(f"{name:42}{columns}{each_ms:>10.0f}", flush=True)


def _train(name: str, epochs: int, settings: Mapping[str, Any], dataset: Dataset, folder: Path) -> None:
    """Write samples after each epoch; a training that diverges ends there."""
    family = name.partition("-")[0]
    spec = TrainSpec.create(family, {**settings, "training.epochs": epochs, "health.enabled": False})
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary, torch.random.fork_rng(devices=[]):
        path = Path(temporary) / "checkpoint"
        for epoch in range(1, epochs + 1):
            training = fit(spec, dataset, path)
            try:
                next(training)
            except TrainingError:
                return
            training.close()  # which leaves a checkpoint to go on from
            drawn = torch.cat(list(_features.samples(_sampler(spec, path, dataset), SAMPLES, 0)))
            np.save(folder / f"{epoch:02d}.npy", drawn.mul(255).round().to(torch.uint8).numpy())
    print(f"{name}: {epochs} epochs", flush=True)


def _sampler(spec: TrainSpec, path: Path, dataset: Dataset) -> Model:
    """What a checkpoint's model is sampled by: itself, or a mixture over its latents."""
    weights = checkpoint.read_weights(path, prefix=checkpoint.AVERAGE)
    model = models.find(spec.model.name)(spec.model, ImageShape(*dataset.shape))
    model.load_state_dict(weights or checkpoint.read_weights(path, prefix=checkpoint.MODEL))
    model.eval().requires_grad_(False)
    if isinstance(model, Sampler):
        return model
    mixed = prior.with_mixture(TrainedModel(model, spec, {}), dataset).prior
    assert mixed is not None
    return mixed.sampler


@torch.no_grad()
def _distances(extract: Callable[[Tensor], Tensor], reference: Tensor, paths: list[Path]) -> tuple[Tensor, float]:
    """The Fréchet distance of each file's samples from the reference, and the milliseconds that one takes."""
    network = _features.FeatureNetwork(name="", extract=extract)
    real = _features.features(reference, network)
    begun_s = time.process_time()
    found = [frechet.compare(real, _features.features(_images(path), network)) for path in paths]
    return torch.tensor(found), 1000 * (time.process_time() - begun_s) / len(paths)


def _images(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path)).float() / 255


def _correlations(found: Tensor, truth: Tensor, paths: list[Path]) -> Iterator[tuple[float, int]]:
    """The correlation among all, the better half, GANs, and the better half of these, with a column's width."""
    is_gan = torch.tensor([path.parent.name.startswith("gan-") for path in paths])
    for members, (width, half_width) in ((torch.ones_like(is_gan), (8, 13)), (is_gan, (7, 18))):
        better = members & (truth <= truth[members].median())
        yield _spearman(found[members], truth[members]), width
        yield _spearman(found[better], truth[better]), half_width


def _spearman(first: Tensor, second: Tensor) -> float:
    """The correlation of ranks of values [N], which have no ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()
