"""Images per second of our loop, of an eager one and of a compiled bare step; and of our loop by its options.

The contenders take turns within one process, so that what slows the machine for a while slows all of them; a turn is
a time of training, the first only warms up. Ours is fit() by the time that it says it trained, judgements left out.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygen.data import Dataset
from raygen.errors import RaygenError
from raygen.spec import TrainSpec
from raygen.training import rhythm
from raygen.training.loop import fit
from tests.benchmarks import loops
from tests.device import DEVICE
from tests.gpu import tables
from tests.gpu.trainings import GROUP, ON_GPU

BAR_EAGER, BAR_COMPILED = 4.0, 0.9
TURNS, TURN_S = (4, 0.5) if ON_GPU else (2, 0.2)
STEPS_BETWEEN_READS = rhythm.STEPS_BETWEEN_SYNCS["cuda"] if ON_GPU else 1
"""As often as our loop reads its losses."""

IMAGES, HELD_OUT = (54_000, 100) if ON_GPU else (640, 20)
TINY: Mapping[str, Any] = (
    {} if ON_GPU else {"model.width": 4, "model.hidden": [32], "training.batch_size": 32, "model.latent_dim": 8}
)

Speeds = Iterator[float]
"""Images per second of one turn after the other."""


@dataclass(frozen=True)
class Task:
    """A model with the side of its square images in pixels, and the least ratio to an eager loop if there is one."""

    name: str
    model: str
    settings: Mapping[str, Any]
    side: int
    bar_eager: float | None = None

    def spec(self, **settings: Any) -> TrainSpec:
        """Of so many epochs that it lasts, and so few that compiling does not seem worth it to `auto`."""
        common = {"training.epochs": 400, "training.checkpoint_every_s": 3600, "training.ema_half_life_images": 0}
        return TrainSpec.create(self.model, {**common, **self.settings, **TINY, "health.enabled": False, **settings})

    def dataset(self) -> Dataset:
        return loops.random_pixels(IMAGES if self.side < 64 else IMAGES // 4, self.side, held_out=HELD_OUT)


VAE, GAN = {"model.arch": "mlp"}, {"model.arch": "conv"}
TASKS = (
    Task("MLP VAE, 28×28", "vae", VAE, 28, BAR_EAGER),
    Task("DCGAN, 28×28", "gan", GAN, 28, BAR_EAGER),
    Task("MLP VAE, 64×64", "vae", VAE, 64),
    Task("DCGAN, 64×64", "gan", GAN, 64),
)
BY_OPTIONS = (TASKS[0], TASKS[3])
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "none of them": {},
    "cudnn_benchmark": {"training.cudnn_benchmark": True},
    "tf32": {"training.tf32": True},
    "channels_last": {"training.channels_last": True},
    "all three": {"training.cudnn_benchmark": True, "training.tf32": True, "training.channels_last": True},
}
OURS, OURS_COMPILED, EAGER, COMPILED = "ours, auto", "ours, on", "eager loop", "compiled bare step"
COMPILES_WITHIN_S = {OURS_COMPILED: 70.0, COMPILED: 140.0} if ON_GPU else {OURS_COMPILED: 0.0, COMPILED: 0.0}
"""What is compiled begins in the first so many seconds, or is left out: all of this must end in minutes."""


def compare_loops() -> None:
    """Print the table of loops, and that of whole trainings."""
    started_s = time.monotonic()
    compiles_until_s = {name: started_s + limit_s for name, limit_s in COMPILES_WITHIN_S.items()}
    made = tables.table(
        "Images per second",
        "training",
        "loop",
        "images/s",
        "min–max",
        "ours, auto ÷ it",
        note=f"Batches of {TASKS[0].spec().training.batch_size}; medians of {TURNS - 1} turns of {TURN_S:g} s each.",
    )
    for task in TASKS:
        dataset = task.dataset()
        found, refused = take_turns(contenders(task, dataset), compiles_until_s)
        for name, speeds in found.items():
            made.add_row(task.name, name, *loops.median_and_range(speeds, ",.0f"), _compared(task, name, found))
        for name, reason in refused.items():
            made.add_row(task.name, name, "–", reason, "")
        made.add_section()
    tables.show(made)
    compare_whole_trainings()


def compare_options() -> None:
    """Print the table by which defaults are chosen."""
    made = tables.table(
        "Images per second by options (compile=auto)",
        "training",
        "option",
        "images/s",
        "min–max",
        "÷ without",
        note="cudnn_benchmark, tf32 and channels_last are off unless named.",
    )
    off = {"training.cudnn_benchmark": False, "training.tf32": False, "training.channels_last": False}
    for task in BY_OPTIONS:
        dataset = task.dataset()
        # What a process multiplies with is set when a training begins, and holds in the steps that it records.
        ways = {name: lazily(ours, task.spec(**{**off, **chosen}), dataset) for name, chosen in OPTIONS.items()}
        found, refused = take_turns(ways)
        for name, speeds in found.items():
            against = _ratio(speeds, found["none of them"])
            made.add_row(task.name, name, *loops.median_and_range(speeds, ",.0f"), f"{against:.2f}")
        for name, reason in refused.items():
            made.add_row(task.name, name, "–", reason, "")
        made.add_section()
    tables.show(made)


def compare_whole_trainings() -> None:
    """Print seconds from the call of fit() to its end, with `auto` and without."""
    made = tables.table(
        "Seconds of a whole training, judgements included",
        "training",
        "steps",
        "compile=off",
        "compile=auto",
        "off ÷ auto",
    )
    for task, epochs in itertools.product(TASKS[:2], (1, 3) if ON_GPU else (1,)):
        dataset = task.dataset()
        seconds: dict[str, list[float]] = {"off": [], "auto": []}
        for _ in range(TURNS):
            for way in seconds:
                seconds[way].append(
                    whole_training(task.spec(**{"training.epochs": epochs, "training.compile": way}), dataset)
                )
        off, auto = (statistics.median(seconds[way][1:]) for way in ("off", "auto"))
        steps = epochs * (len(dataset.train.images) // task.spec().training.batch_size)
        made.add_row(task.name, f"{steps:,}", f"{off:.2f}", f"{auto:.2f}", tables.ratio(off / auto, 0.95))
    tables.show(made)


def whole_training(spec: TrainSpec, dataset: Dataset) -> float:
    """Seconds from the call of fit() to its end."""
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        list(fit(spec, dataset, Path(folder, "checkpoint"), group=GROUP))
        return time.perf_counter() - start_s


def contenders(task: Task, dataset: Dataset) -> dict[str, Speeds]:
    """The loops in the order in which they begin: what ours compiles resets what torch has compiled before."""
    spec = task.spec()
    size = spec.training.batch_size

    def eager() -> Speeds:
        images = dataset.train.images.to(DEVICE).float() / 255
        return steady(loops.eager_step(spec, images), size)

    def compiled() -> Speeds:
        batch = dataset.train.images[:size].to(DEVICE).float() / 255
        return steady(loops.bare_step(spec, batch, compiled=True), size)

    return {
        OURS: lazily(ours, task.spec(**{"training.compile": "auto"}), dataset),
        EAGER: lazily(eager),
        OURS_COMPILED: lazily(ours, task.spec(**{"training.compile": "on"}), dataset),
        COMPILED: lazily(compiled),
    }


def lazily(make: Callable[..., Speeds], *arguments: Any) -> Speeds:
    """What `make` returns, made when the first turn is asked for."""
    yield from make(*arguments)


def ours(spec: TrainSpec, dataset: Dataset) -> Speeds:
    """Of fit(), by whole epochs."""
    images = len(dataset.train.images) // spec.training.batch_size * spec.training.batch_size
    with tempfile.TemporaryDirectory() as folder:
        before_s, epochs = 0.0, 0
        for epoch in fit(spec, dataset, Path(folder, "checkpoint"), group=GROUP):
            epochs += 1
            if epoch.train_s - before_s >= TURN_S:
                yield epochs * images / (epoch.train_s - before_s)
                before_s, epochs = epoch.train_s, 0


def steady(step: loops.StepFunction, batch_size: int) -> Speeds:
    """Of a step that is taken again and again."""
    while True:
        start_s, steps = time.perf_counter(), 0
        while time.perf_counter() - start_s < TURN_S:
            for _ in range(STEPS_BETWEEN_READS):
                loss = step()
            loss.item()  # waits for the device
            steps += STEPS_BETWEEN_READS
        yield steps * batch_size / (time.perf_counter() - start_s)


def take_turns(
    ways: Mapping[str, Speeds], until_s: Mapping[str, float] = types.MappingProxyType({})
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Speeds of the turns of each but the first; and of those that could not run, why.

    What is named in `until_s` begins before that time or not at all.
    """
    found: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    for name, way in ways.items():
        if time.monotonic() > until_s.get(name, math.inf):
            refused[name] = "no time to compile"
            continue
        try:
            next(way)
        except (RuntimeError, RaygenError) as error:  # torch.compile without a compiler raises a RuntimeError
            refused[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:60]
        else:
            found[name] = []
    for _ in range(TURNS - 1):
        for name, speeds in found.items():
            speeds.append(next(ways[name]))
    return found, refused


def _compared(task: Task, name: str, found: Mapping[str, list[float]]) -> str:
    if name == OURS or OURS not in found:
        return ""
    value = _ratio(found[OURS], found[name])
    bars = {EAGER: task.bar_eager, COMPILED: BAR_COMPILED}
    bar = bars.get(name)
    return f"{value:.2f}" if bar is None else tables.ratio(value, bar)


def _ratio(first: list[float], second: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(first, second, strict=True))
