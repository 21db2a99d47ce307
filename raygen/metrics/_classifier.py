"""The `classifier` network: a small convolutional net trained on a data set's labels, once, then cached.

Its features suit the data set as Inception's cannot (Naeem et al. 2020, "Reliable fidelity and diversity metrics",
section 4). Three strided 3×3 convolutions with GroupNorm over images resized to 32×32; the features are the 128
means over the last one's positions. Trained on the CPU from a fixed seed, so that a cached file is all that differs
between machines; its accuracy on validation images and the digest of its weights go with every value over it.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from raygen import files
from raygen.data import Dataset, cache
from raygen.errors import DataError
from raygen.metrics import most_fitted
from raygen.metrics._features import CHUNK_IMAGES, FeatureNetwork, prepared

VERSION = 1  # raise it when the network or its training changes
CHANNELS = 128
MOST_CLASSES = 10_000
SEED = 0
BATCH_SIZE = 64
TRAINING_IMAGES = 60_000  # of the data set, at most
MOST_EPOCHS = 20
IMAGES_SEEN = 160_000  # in all epochs together, at most: half a minute on one core
LEARNING_RATE = 2e-3


class Network(nn.Module):
    """Images [B, C, H, W] in [0, 1] to features [B, 128], and features to one logit for each class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_block(3, 32), *_block(32, 64), *_block(64, CHANNELS))
        self.head = nn.Linear(CHANNELS, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, 128]."""
        return self.body(prepared(images)).mean(dim=(2, 3))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A trained network, the share of validation images that it classifies rightly, and what it was trained on."""

    network: Network
    accuracy: float
    source: str

    def classes(self, images: Tensor) -> Tensor:
        """The likeliest class [B] of images [B, C, H, W] in [0, 1]."""
        return self.network.to(images.device)(images).argmax(dim=1)  # type: ignore[no-any-return]

    def as_features(self) -> FeatureNetwork:
        """The same as a feature network, with its accuracy and the digest of its weights."""
        facts = {"trained_on": self.source, "held_out_accuracy": self.accuracy, "weights": _digest(self.network)}
        return FeatureNetwork(
            name="classifier",
            extract=lambda images: self.network.to(images.device).features(images),
            facts=facts,
        )


def has_classes(dataset: Dataset) -> bool:
    """Whether all parts have labels, those of the first training images of two classes or more, none of too many."""
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part]
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) < len(parts) or max(int(each.max()) for each in labels) >= MOST_CLASSES:
        return False
    return len(labels[0][: most_fitted(dataset.shape)].unique()) > 1


def trained_on(dataset: Dataset) -> Classifier:
    """The classifier of a data set, from the cache where it is; raises DataError without labels of 2 classes."""
    if dataset.train.labels is None or dataset.validation.labels is None:
        raise DataError(f"{dataset.name} has no labels to train the classifier network on: use --network random")
    classes = 1 + int(torch.maximum(dataset.train.labels.max(), dataset.validation.labels.max()))
    if len(dataset.train.labels.unique()) < 2 or classes > MOST_CLASSES:
        raise DataError(
            f"{dataset.name}: the classifier network takes labels of 2 classes or more, below {MOST_CLASSES}: "
            "use --network random"
        )
    path = cache.part("classifiers") / f"{_fingerprint(dataset)}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            return _read(path, classes, dataset.name) or _train_and_write(path, classes, dataset)
    except OSError as error:
        raise DataError(
            f"cannot write the classifier network to {path.parent} ({error.strerror or error}); "
            "free space there or set RAYGEN_CACHE to another folder"
        ) from error


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
    return [convolution, nn.GroupNorm(8, outputs), nn.SiLU()]


def _read(path: Path, classes: int, source: str) -> Classifier | None:
    """The cached classifier; None if it is absent or damaged."""
    with torch.device("meta"):  # no initial weights, which would be drawn from the global generator
        network = Network(classes)
    try:
        with safe_open(path, framework="pt") as file:
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, assign=True)  # noqa: SIM118
            accuracy = float(file.metadata()["held_out_accuracy"])
    except (FileNotFoundError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError):
        return None
    cache.mark_used(path)
    return Classifier(network=network.eval().requires_grad_(False), accuracy=accuracy, source=source)


def _train_and_write(path: Path, classes: int, dataset: Dataset) -> Classifier:
    assert dataset.train.labels is not None
    assert dataset.validation.labels is not None
    network = _train(dataset.train.images[:TRAINING_IMAGES], dataset.train.labels[:TRAINING_IMAGES], classes)
    accuracy = _accuracy(network, dataset.validation.images, dataset.validation.labels)
    facts = {"held_out_accuracy": repr(accuracy), "source": dataset.name}
    with files.replacing(path, writer=platform.node()) as partial:
        save_file(network.state_dict(), partial, metadata=facts)
    return Classifier(network=network, accuracy=accuracy, source=dataset.name)


def _train(images: Tensor, labels: Tensor, classes: int) -> Network:
    """A network trained on images (uint8 [N, C, H, W]) and labels [N]; Adam, its rate falling to 0 in a line."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = Network(classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        epochs = min(MOST_EPOCHS, max(1, round(IMAGES_SEEN / len(images))))
        steps = epochs * -(-len(images) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(BATCH_SIZE):
                loss = F.cross_entropy(network(images[rows].float() / 255), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval().requires_grad_(False)


def _accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    chunks = zip(images.split(CHUNK_IMAGES), labels.split(CHUNK_IMAGES), strict=True)
    right = [network(chunk.float() / 255).argmax(dim=1) == truth for chunk, truth in chunks]
    return torch.cat(right).double().mean().item()


def _digest(network: Network) -> str:
    """Sixteen hexadecimal digits that tell two sets of weights apart."""
    digest = hashlib.sha256()
    for weight in network.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _fingerprint(dataset: Dataset) -> str:
    """Changes with the images or labels that the classifier is trained or tested on."""
    digest = hashlib.sha256(f"{VERSION}".encode())
    assert dataset.train.labels is not None
    assert dataset.validation.labels is not None
    for part in (
        dataset.train.images[:TRAINING_IMAGES],
        dataset.train.labels[:TRAINING_IMAGES],
        dataset.validation.images,
        dataset.validation.labels,
    ):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]
