"""Trials per hour with 1, 2, 4, … at once on the device, and how many `--gpus-per-trial auto` would choose."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from raygen import packing
from raygen.errors import RehearsalError
from raygen.packing import Measured
from raygen.spec import TrainSpec
from raygen.training import rehearsal
from raygen.training.rehearsal import Wanted
from tests.device import DEVICE
from tests.gpu import tables
from tests.gpu.trainings import ON_GPU

BAR_BEST, BAR_ALONE = 0.9, 4.0
NUMBERS = (1, 2, 4, 8, 16) if ON_GPU else (1, 2)
WARM_UP_S, SPAN_S = (1.0, 4.0) if ON_GPU else (0.2, 1.0)
IMAGES, EPOCHS = (20_000, 10) if ON_GPU else (1000, 10)


def compare_numbers() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        array = Path(folder, "pixels.npy")
        np.save(array, np.random.default_rng(0).integers(256, size=(IMAGES, 28, 28), dtype=np.uint8))
        spec = TrainSpec.create("vae", {"data.source": str(array), "training.epochs": EPOCHS})
        measure = lru_cache(lambda number: rehearsal.measure(wanted(spec, number)))
        chosen = packing.choose(measure, most=NUMBERS[-1], growth=1.0)
        found: dict[int, Measured] = {}
        refused: dict[int, str] = {}
        for number in NUMBERS:
            try:
                found[number] = measure(number)
            except RehearsalError as error:
                refused[number] = str(error)[:60]
    made = tables.table(
        "Trials per hour on one device",
        "at once",
        "trials/h",
        "÷ one at a time",
        "÷ the best",
        "GiB each",
        note=f"Plain processes, without Ray: each trains an MLP VAE for {EPOCHS} epochs of {IMAGES:,} images of "
        f"28×28, again and again, for {SPAN_S:g} s. Chosen by raygen.packing: {chosen.at_once}. {chosen.why}.",
    )
    best = max(each.images_per_s for each in found.values())
    for number, each in found.items():
        of_alone, of_best = each.images_per_s / found[1].images_per_s, each.images_per_s / best
        is_chosen = number == chosen.at_once
        made.add_row(
            f"{number}, chosen" if is_chosen else f"{number}",
            f"{each.images_per_s * 3600 / (EPOCHS * IMAGES * TRAINED_ON):,.0f}",
            tables.ratio(of_alone, BAR_ALONE) if is_chosen else f"{of_alone:.2f}",
            tables.ratio(of_best, BAR_BEST) if is_chosen else f"{of_best:.2f}",
            f"{each.bytes_each / 2**30:.2f}",
        )
    for number, reason in refused.items():
        made.add_row(f"{number}", "–", reason, "", "")
    tables.show(made)


TRAINED_ON = 0.8
"""Part of the images that a trial trains on; the others are for validation and testing."""


def wanted(spec: TrainSpec, at_once: int) -> Wanted:
    """What each of so many processes is to train; on a GPU they get as many threads together as there are cores."""
    return Wanted(
        spec=spec,
        device=str(DEVICE),
        threads=max(1, (os.cpu_count() or 1) // at_once) if ON_GPU else 1,
        at_once=at_once,
        warm_up_s=WARM_UP_S,
        span_s=SPAN_S,
        storage=None,
        images=None,
    )
