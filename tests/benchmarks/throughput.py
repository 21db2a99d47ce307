"""Images per second of our loop, of the loop that people write, and of the device at its limit.

    python -m tests.benchmarks.throughput --arch mlp --device cpu

All train the same VAE (784-400-20 with --arch mlp; Bernoulli, fp32, Adam) on the same images, in batches of one size.
`ours` is fit() itself by the `train_s` that it reports: batches, noise, steps and reading the losses, no evaluation.
`DataLoader` is the usual loop over PIL images with ToTensor, shuffled, read by 0 or by 2 worker processes.
`limit` repeats the bare step, with noise from torch.randn, on one float batch that stays on the device.
The contenders take turns, a pass over the images each, and a ratio is formed within a turn, so that what slows the
machine for a while slows both of its sides. A round builds all of them anew, since where their memory happens to lie
is worth ±2 %, and its first turn only warms up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms import ToTensor

from raygen import data
from raygen.errors import DataError
from raygen.models._base import Batch, ImageShape
from raygen.spec import TrainSpec
from raygen.training.distributed import Group
from raygen.training.loop import fit
from raygen.training.step import build_model
from tests.benchmarks import loops

BAR_LIMIT, BAR_DATALOADER = 0.95, 2.0
TURNS = 3  # of a round, the one that warms up included


def main() -> None:
    """Measure and print the table."""
    options = _options()
    device = torch.device(options.device)
    dataset = _dataset(options.steps * options.batch_size)
    images = len(dataset.train.images)
    settings = {"arch": options.arch, "hidden": [400], "latent_dim": 20, "likelihood": "bernoulli"}
    spec = TrainSpec.create(
        "vae",
        {
            **{f"model.{name}": value for name, value in settings.items()},
            "training.batch_size": options.batch_size,
            "training.epochs": TURNS,
            "training.checkpoint_every_s": 3600,
        },
    )
    turns: list[dict[str, float]] = []
    for _ in range(options.rounds):
        turns += list(take_turns(spec, dataset, device))[1:]
    speeds = {name: [images / seconds[name] for seconds in turns] for name in turns[0]}
    Console(width=110).print(
        _table(
            speeds,
            title=f"VAE ({options.arch}), {dataset.name}, {images:,} images a pass, batches of {options.batch_size}",
            caption=f"medians of {len(turns)} passes; {loops.machine(device)}",
        )
    )


def take_turns(spec: TrainSpec, dataset: data.Dataset, device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds of a pass of each contender, again and again until the spec's epochs are over."""
    passes = {
        "ours": our_loop(spec, dataset, device),
        "limit": bare_steps(spec, dataset, device),
        "DataLoader, 0 workers": data_loader_loop(spec, dataset, device, workers=0),
        "DataLoader, 2 workers": data_loader_loop(spec, dataset, device, workers=2),
    }
    for seconds in zip(*passes.values(), strict=False):  # as many as `ours` has epochs; the others go on for ever
        yield dict(zip(passes, seconds, strict=True))


def our_loop(spec: TrainSpec, dataset: data.Dataset, device: torch.device) -> Iterator[float]:
    """Seconds of each epoch of fit()."""
    before_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for epoch in fit(spec, dataset, Path(folder, "checkpoint"), group=Group(device=device)):
            yield epoch.train_s - before_s
            before_s = epoch.train_s


def data_loader_loop(spec: TrainSpec, dataset: data.Dataset, device: torch.device, *, workers: int) -> Iterator[float]:
    """Seconds of each epoch of the loop in torch's own VAE example: read, move, minimise, add up the loss."""
    model = build_model(spec, ImageShape(*dataset.shape), device)
    loss_of = model.phases()[0].loss
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.optimizer.lr)
    loader = torch.utils.data.DataLoader(
        Pictures(dataset.train.images),
        batch_size=spec.training.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,  # else each pass would start them again
        pin_memory=device.type == "cuda",
    )
    noise = loops.PlainNoise(spec.training.batch_size, device)
    while True:
        start_s, total_loss = time.perf_counter(), 0.0
        for images in loader:
            optimizer.zero_grad()
            loss, _ = loss_of(Batch(images=images.to(device), noise=noise))
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
        yield time.perf_counter() - start_s


def bare_steps(spec: TrainSpec, dataset: data.Dataset, device: torch.device) -> Iterator[float]:
    """Seconds of as many steps as an epoch has, on one batch."""
    step = loops.bare_step(spec, dataset.train.images[: spec.training.batch_size].to(device).float() / 255)
    while True:
        start_s = time.perf_counter()
        for _ in range(len(dataset.train.images) // spec.training.batch_size):
            loss = step()
        loss.item()  # waits for the device
        yield time.perf_counter() - start_s


class Pictures(torch.utils.data.Dataset[Tensor]):
    """Grey images as torchvision's data sets give them, through PIL and ToTensor."""

    def __init__(self, images: Tensor) -> None:
        self._images = images
        self._transform = ToTensor()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        picture: Tensor = self._transform(Image.fromarray(self._images[index, 0].numpy()))
        return picture


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images per second: our loop, a DataLoader loop, the limit.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--arch", choices=["mlp", "conv"], default="mlp")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="of one pass, at most an epoch")
    parser.add_argument("--rounds", type=int, default=8, help="of two counted passes each")
    return parser.parse_args()


def _dataset(images: int) -> data.Dataset:
    """Fashion-MNIST where this machine has it, else random pixels of that shape; up to `images` to train on."""
    try:
        with mock.patch.object(data.catalog, "_download", side_effect=DataError("a benchmark downloads nothing")):
            found = data.load(data.DataOptions(source="fashion-mnist"))
    except DataError:
        found = loops.random_pixels(54_000, 28, held_out=6000)
    return replace(found, train=data.Part(found.train.images[:images]))


def _table(speeds: dict[str, list[float]], *, title: str, caption: str) -> Table:
    bars = {"limit": BAR_LIMIT, _fastest_loader(speeds): BAR_DATALOADER}
    table = Table(title=title, caption=caption)
    table.add_column("loop")
    for column in ("images/s", "min–max", "ours ÷ it", "min–max", "bar"):
        table.add_column(column, justify="right")
    for name, own in speeds.items():
        ratios = [ours / speed for ours, speed in zip(speeds["ours"], own, strict=True)]
        compared = ("", "") if name == "ours" else loops.median_and_range(ratios, ".3f")
        bar = f"≥ {bars[name]:g} {loops.mark(statistics.median(ratios) >= bars[name])}" if name in bars else ""
        table.add_row(name, *loops.median_and_range(own, ",.0f"), *compared, bar)
    return table


def _fastest_loader(speeds: dict[str, list[float]]) -> str:
    loaders = [name for name in speeds if name.startswith("DataLoader")]
    return max(loaders, key=lambda name: statistics.median(speeds[name]))


if __name__ == "__main__":
    main()
