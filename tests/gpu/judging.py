"""Seconds of `evaluate` on a CPU and on the device."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch

import raygen
from raygen import data
from raygen.protocol import Protocol
from tests.benchmarks import loops
from tests.device import DEVICE
from tests.gpu import tables
from tests.gpu.trainings import ON_GPU, spec_of, trained

IMAGES, SIDE = (2000, 28) if ON_GPU else (100, 28)


def compare_devices() -> None:
    """Print the table."""
    torch.set_num_threads((os.cpu_count() or 1) if ON_GPU else 1)
    made = tables.table(
        f"Seconds of evaluate on {IMAGES:,} images, all metrics that suit the model",
        "model",
        "metrics",
        "CPU",
        DEVICE.type,
        "CPU ÷ it",
        note=f"The CPU's with {torch.get_num_threads()} threads; the second of two times each.",
    )
    dataset = loops.random_pixels(3 * IMAGES, SIDE, held_out=IMAGES)
    dataset = replace(dataset, test=data.Part(dataset.train.images[:IMAGES]))
    for kind in ("vae", "gan"):
        model = trained(
            spec_of(kind, **{"training.epochs": 1, "data.balance": False} if kind == "vae" else {}), dataset
        )
        seconds = {}
        for name in ("cpu", DEVICE.type):
            for _ in range(2):
                start_s = time.perf_counter()
                card = raygen.evaluate(model, Protocol(images=IMAGES), device=name)
                seconds[name] = time.perf_counter() - start_s
        cpu_s, device_s = seconds["cpu"], seconds[DEVICE.type]
        made.add_row(kind, f"{len(card.values)}", f"{cpu_s:.2f}", f"{device_s:.2f}", f"{cpu_s / device_s:.1f}")
    tables.show(made)
