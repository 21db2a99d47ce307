"""What a slow storage costs a training: images per second with a bucket 50 ms away, beside a folder of this machine.

    python -m tests.benchmarks.storage --latency-ms 50

Both trainings are the same VAE on the same images, and write all that a trial writes: pace, epochs, pictures,
checkpoints every two seconds. They take turns, and a ratio is formed within a turn; the first turn only warms up. The
bucket is moto's server on this machine, behind a proxy that delays and counts requests; it works on the same cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from raygen.data import Dataset, Part
from raygen.plan import Plan
from raygen.record.attempt import Attempt
from raygen.record.run import Run
from raygen.record.trial import TrialWriter
from raygen.spec import TrainSpec
from raygen.storage import Storage
from raygen.training import drawing
from raygen.training.loop import fit
from tests.storage import servers
from tests.storage.proxy import Proxy

BAR = 0.97
CHECKPOINT_EVERY_S = 2.0
IMAGES = 20_000


def main() -> None:
    """Measure and print the table."""
    options = _options()
    torch.set_num_threads(1)
    spec = _spec(options.epochs)
    dataset = _dataset()
    rates: dict[str, list[float]] = {"folder": [], "bucket": []}
    requests_a_minute: list[float] = []
    with _places(options.latency_ms / 1000) as (folder, bucket, proxy):
        for turn in range(options.turns + 1):
            here = _images_per_s(folder, spec, dataset)
            before, began_at = sum(proxy.requests.values()), time.monotonic()
            there = _images_per_s(bucket, spec, dataset)
            if turn:
                rates["folder"].append(here)
                rates["bucket"].append(there)
                minutes = (time.monotonic() - began_at) / 60
                requests_a_minute.append((sum(proxy.requests.values()) - before) / minutes)
    ratio = statistics.median(there / here for here, there in zip(*rates.values(), strict=True))
    table = Table("storage", "images/s", "of the folder", "requests a trial-minute", box=None, pad_edge=False)
    table.add_row("folder", f"{statistics.median(rates['folder']):,.0f}")
    table.add_row(
        f"bucket, {options.latency_ms:g} ms",
        f"{statistics.median(rates['bucket']):,.0f}",
        f"{ratio:.3f} (bar {BAR})",
        f"{statistics.median(requests_a_minute):.0f}",
    )
    Console().print(table)


def _images_per_s(storage: Storage, spec: TrainSpec, dataset: Dataset) -> float:
    """Training images per second of wall time, judging and all that is written included, from first step to last."""
    plan = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    run = Run.create(storage, "train", spec, plan, "max")
    attempt = Attempt.begin(storage, run.name, 1)
    assert attempt is not None
    with closing(attempt):
        attempt.new_trial(1, {}, spec)
        with closing(TrialWriter.begin(attempt.place(1))) as writer:
            writer.set_state("running")
            began_at = time.perf_counter()
            epochs = fit(
                spec,
                dataset,
                writer.checkpoint,
                on_pace=writer.record_pace,
                on_judged=lambda epoch, model: writer.record_picture(
                    epoch,
                    drawing.picture(model, dataset.validation.images, spec),
                    keeps=spec.evaluation.keeps_picture,
                ),
                on_saved=writer.record_checkpoint,
                should_stop=writer.should_stop,
            )
            for epoch in epochs:
                writer.record_epoch(epoch)
            elapsed_s = time.perf_counter() - began_at
            writer.set_state("finished")
    return spec.training.epochs * len(dataset.train.images) / elapsed_s


@contextmanager
def _places(latency_s: float) -> Iterator[tuple[Storage, Storage, Proxy]]:
    os.environ.update(servers.S3_ENVIRONMENT)
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.moto() as address,
        Proxy(address, latency_s=latency_s).running() as proxy,
    ):
        bucket = Storage(f"s3://{servers.BUCKET}/benchmark?endpoint={proxy.address}")
        yield Storage(Path(folder) / "runs"), bucket, proxy


def _spec(epochs: int) -> TrainSpec:
    return TrainSpec.create(
        "vae",
        {
            "model.arch": "mlp",
            "training.epochs": epochs,
            "training.batch_size": 128,
            "training.checkpoint_every_s": CHECKPOINT_EVERY_S,
        },
    )


def _dataset() -> Dataset:
    """Images of noise: what they show does not change how fast they are trained on."""
    images = torch.randint(256, (IMAGES + 1000, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator())
    return Dataset("noise", Part(images[:IMAGES]), Part(images[IMAGES:]), None, digest="0" * 16)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
