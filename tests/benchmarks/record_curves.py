"""Record learning curves of real trainings, for searches to be replayed on (search_policies.py).

    python -m tests.benchmarks.record_curves vae --configurations 150 --processes 2

trains each configuration on Fashion-MNIST, one core each, and writes its objective and its seconds of CPU time, epoch
by epoch, to curves/FAMILY.json. What the file holds already is not trained again, so that a recording can be
interrupted. The first configuration is the family's defaults; every fourth lies around them, within a third of each
range; the others are Sobol points of the whole space, so that any number of them covers it evenly.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raygen import data, files
from raygen.data import DataOptions, Part
from raygen.errors import TrainingError
from raygen.spec import TrainSpec
from raygen.training.loop import fit

FOLDER = Path(__file__).parent / "curves"
HELD_OUT = 2_000
NEAR = 1 / 3
"""Part of each range, on its own scale, in which a configuration around the defaults lies."""


@dataclass(frozen=True)
class Recording:
    """What one family is trained on, and the ranges that its configurations come from: low, high, whole numbers?"""

    images: int
    epochs: int
    settings: dict[str, Any]
    ranges: dict[str, tuple[float, float, bool]]
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256)


RECORDINGS = {
    "vae": Recording(
        images=20_000,
        epochs=20,
        settings={},
        ranges={"optimizer.lr": (1e-4, 1e-2, False), "model.latent_dim": (2, 64, True)},
    ),
    # Half the channels of the defaults, which makes a recording of 100 trainings one of hours and not of a night.
    "gan": Recording(
        images=10_000,
        epochs=12,
        settings={"model.width": 16},
        ranges={"optimizer.lr": (1e-4, 5e-3, False), "model.latent_dim": (8, 128, True)},
    ),
}


def main() -> None:
    """Train what the file lacks, and write it down after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(RECORDINGS))
    parser.add_argument("--configurations", type=int, default=150)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    path = FOLDER / f"{options.family}.json"
    curves = json.loads(path.read_text(encoding="utf-8"))["curves"] if path.exists() else []
    done = [curve["parameters"] for curve in curves]
    wanted = [each for each in configurations(options.family, options.configurations) if each not in done]
    with ProcessPoolExecutor(options.processes) as pool:
        for finished in as_completed([pool.submit(record, options.family, each) for each in wanted]):
            curves.append(finished.result())
            _write(path, options.family, curves)
            print(f"{len(curves)}: {curves[-1]['parameters']} {curves[-1]['values'][-1:]}", flush=True)


def configurations(family: str, count: int) -> list[dict[str, Any]]:
    """The defaults, then `count` - 1 points of the space: three from all of it, then one from around the defaults."""
    recording, first = RECORDINGS[family], defaults(family)
    points = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(count - 1).tolist()
    return [first] + [
        _configuration(recording, point, near=first if index % 4 == 3 else None) for index, point in enumerate(points)
    ]


def defaults(family: str) -> dict[str, Any]:
    """The family's own values of what the recordings vary."""
    spec = TrainSpec.create(family, RECORDINGS[family].settings)
    return {
        "optimizer.lr": spec.optimizer.lr,
        "training.batch_size": spec.training.batch_size,
        "model.latent_dim": spec.model.latent_dim,
    }


def _configuration(recording: Recording, point: list[float], *, near: dict[str, Any] | None) -> dict[str, Any]:
    sizes = recording.batch_sizes
    size = sizes[int(point[-1] * len(sizes))]
    if near is not None:
        size = sizes[min(max(sizes.index(near["training.batch_size"]) + int(point[-1] * 3) - 1, 0), len(sizes) - 1)]
    chosen: dict[str, Any] = {"training.batch_size": size}
    for share, (name, (low, high, whole)) in zip(point, recording.ranges.items(), strict=False):
        position = share
        if near is not None:
            centre = math.log(near[name] / low) / math.log(high / low)
            position = min(max(centre + NEAR * (share - 0.5), 0.0), 1.0)
        value = low * (high / low) ** position
        chosen[name] = round(value) if whole else float(f"{value:.4g}")
    return chosen


def record(family: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Train one configuration; its objective after each epoch, until it diverged if it did, and its CPU seconds."""
    torch.set_num_threads(1)
    recording = RECORDINGS[family]
    dataset = data.load(DataOptions(source="fashion-mnist"))
    dataset = replace(
        dataset,
        train=Part(dataset.train.images[: recording.images]),
        validation=Part(dataset.validation.images[:HELD_OUT]),
    )
    spec = TrainSpec.create(
        family, {**recording.settings, **parameters, "training.epochs": recording.epochs, "health.enabled": False}
    )
    values: list[float] = []
    cpu_s: list[float] = []
    begun_s = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            for epoch in fit(spec, dataset, Path(folder) / "checkpoint"):
                values.append(float(f"{epoch.metrics[spec.evaluation.objective]:.6g}"))
                cpu_s.append(round(time.process_time() - begun_s, 2))
        except TrainingError:
            pass  # it diverged: the curve ends here
    return {"parameters": parameters, "values": values, "cpu_s": cpu_s}


def _write(path: Path, family: str, curves: list[dict[str, Any]]) -> None:
    recording = RECORDINGS[family]
    facts = {"family": family, "images": recording.images, "epochs": recording.epochs, "settings": recording.settings}
    lines = ",\n".join(json.dumps(curve) for curve in curves)
    with files.whole(path) as partial:
        partial.write_text(f'{json.dumps(facts)[:-1]}, "curves": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
