"""Seconds of `evaluate` on a CPU and on the device."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch

from raygen import data, evaluation
from raygen.protocol import Protocol
from raygen.spec import TrainSpec
from raygen.training.distributed import CPU
from tests.benchmarks import loops
from tests.device import DEVICE
from tests.gpu import tables
from tests.gpu.trainings import ON_GPU, trained

IMAGES, SIDE = 2000 if ON_GPU else 100, 28
TIMES = 2
"""The first warms up."""


def compare_devices() -> None:
    """Print the table."""
    torch.set_num_threads((os.cpu_count() or 1) if ON_GPU else 1)
    made = tables.table(
        f"Seconds of evaluate on {IMAGES:,} images, by all metrics that suit the model",
        "model",
        "metrics",
        "CPU",
        str(DEVICE),
        "CPU ÷ it",
        note=f"The CPU's with {torch.get_num_threads()} threads; the second time of {TIMES}.",
    )
    pixels = loops.random_pixels(3 * IMAGES, SIDE, held_out=IMAGES)
    dataset = replace(pixels, test=data.Part(pixels.train.images[:IMAGES]))
    for family in ("vae", "gan"):
        model = trained(TrainSpec.create(family, {"training.epochs": 1}), dataset)
        seconds = []
        for device in (CPU, DEVICE):
            placed = model.to(device)
            for _ in range(TIMES):
                start_s = time.perf_counter()
                card = evaluation.evaluate(placed, dataset, None, Protocol(images=IMAGES))
                last_s = time.perf_counter() - start_s
            seconds.append(last_s)
        cpu_s, device_s = seconds
        made.add_row(family, f"{len(card.values)}", f"{cpu_s:.2f}", f"{device_s:.2f}", f"{cpu_s / device_s:.1f}")
    tables.show(made)
