"""Seconds that a trial costs beyond its training: in our search, in a bare Tune function, in Tune over Train.

    python -m tests.benchmarks.trial_overhead --trials 16 --concurrent 2

All run the same trials: a VAE on the embedded digits for a few epochs, learning rate, batch size and latent dimension
drawn at random, one core each, `concurrent` at a time. The trials of our search are the ones given to the others.

    overhead of a trial = (seconds of Tuner.fit() × concurrent − training seconds of these trials) / trials

Training seconds are measured once for all, without Ray: what the same trials take in `concurrent` plain processes that
are warm, each from reading its spec to its last checkpoint. So the overhead holds what Ray adds in any way: starting
actors and importing torch in them, scheduling, results, idle cores at the end, slower training beside Ray's processes.
Outside Tuner.fit() lie starting Ray and imports: `whole` is the process with all.

The contenders are `ours`, a search as `raygen tune` runs it (random, fifo); `bare`, a Tune function with
reuse_actors=True; and `nested`, Ray's documented function that starts a one-worker TorchTrainer with
TuneReportCallback in each trial.
Each runs in a process of its own with a Ray of its own, all with raygen's environment, which makes Ray Train faster.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raygen.cluster.session import ENVIRONMENT

BAR_S = 1.2


def main() -> None:
    """Measure and print the table; or, with --contender, be one of its rows."""
    options = _options()
    if options.contender:
        globals()[options.contender](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        rows = {"ours": _measured("ours", options)}
        training_s = _measured("plain", options)["training_s"]
        rows["bare"] = _measured("bare", options)
        if not options.skip_nested:
            options.trials = min(options.trials, options.nested_trials)
            rows["nested"] = _measured("nested", options)
    Console(width=110).print(_table(rows, training_s, options))


def ours(options: argparse.Namespace) -> None:
    """Run a search, and leave its trials' specs to the others."""
    import ray

    from raygen import preparation
    from raygen.capacity import Capacity
    from raygen.cluster.tune import run_trials
    from raygen.record import ranking
    from raygen.record.attempt import Attempt
    from raygen.record.run import Run
    from raygen.storage import Storage

    settings = {
        "training.epochs": options.epochs,
        "search.trials": options.trials,
        "search.sampler": "random",
        "search.scheduler": "fifo",
        "resources.cpus": options.concurrent,
        "resources.gpus": 0,
    }
    here = Capacity.of_machine(gpus=0, cpus=options.concurrent, where="this machine")
    job = preparation.prepare_search("vae", settings, here)
    preparation.check_data(job)
    run = Run.create(Storage(options.folder), job.kind, job.spec, job.plan, job.direction, name="search")
    attempt = Attempt.begin(run.storage, run.name, 1)
    assert attempt is not None
    ray.init(address="local", num_cpus=options.concurrent, include_dashboard=False)
    search_s = _seconds(lambda: run_trials(attempt, job.spec, job.plan))
    attempt.close()
    view = run.look()
    assert ranking.is_complete(view), [(trial.state, trial.progress.reason) for trial in view.trials]
    for number, trial in enumerate(view.trials):
        _spec_path(options.folder, number).write_text(trial.spec().model_dump_json(), encoding="utf-8")
    _hand_back(options, search_s=search_s)


def plain(options: argparse.Namespace) -> None:
    """Train every trial in plain processes, twice: the first time warms them up."""
    with ProcessPoolExecutor(options.concurrent, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in range(2):
            folders = [options.folder] * options.trials
            training_s = list(pool.map(_training_seconds, folders, range(options.trials)))
    _hand_back(options, training_s=training_s)


def bare(options: argparse.Namespace) -> None:
    """Run the trials in re-used actors of a Tune function."""
    from ray import tune

    folder = options.folder

    def trial(config: dict[str, int]) -> None:
        for metrics in train(folder, config["number"]):
            tune.report(metrics)

    _hand_back(options, search_s=_tuned(trial, options, reuse_actors=True))


def nested(options: argparse.Namespace) -> None:
    """Run the trials as Ray documents it for Ray Train: a Tune function that starts a trainer for each."""
    import ray.train
    import ray.train.torch
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    folder = options.folder

    def worker(config: dict[str, int]) -> None:
        for metrics in train(folder, config["number"]):
            ray.train.report(metrics)

    def trial(config: dict[str, int]) -> None:
        ray.train.torch.TorchTrainer(
            worker,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=tune.get_context().get_trial_id(),
                storage_path=str(folder / "train"),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    _hand_back(options, search_s=_tuned(trial, options, reuse_actors=False))


def train(folder: Path, number: int) -> Iterator[dict[str, float]]:
    """Train one trial on one core; yields the metrics of each epoch."""
    import torch

    from raygen import data
    from raygen.spec import TrainSpec
    from raygen.training.loop import fit

    torch.set_num_threads(1)
    spec = TrainSpec.model_validate_json(_spec_path(folder, number).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
        for epoch in fit(spec, data.load(spec.data), Path(checkpoints, "checkpoint")):
            yield epoch.metrics


def _training_seconds(folder: Path, number: int) -> float:
    return _seconds(lambda: list(train(folder, number)))


def _tuned(trial: Callable[[dict[str, int]], None], options: argparse.Namespace, *, reuse_actors: bool) -> float:
    """Seconds of a Tuner's fit() over all trials."""
    import ray
    from ray import tune

    # Beside the core of each trial one more, which only `nested` needs: its trials wait for a worker elsewhere.
    ray.init(address="local", num_cpus=2 * options.concurrent, include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"number": tune.grid_search(list(range(options.trials)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=options.concurrent, reuse_actors=reuse_actors),
        run_config=tune.RunConfig(storage_path=str(options.folder / "tune"), verbose=0),
    )
    errors: list[Exception] = []
    seconds = _seconds(lambda: errors.extend(tuner.fit().errors))
    assert not errors, errors
    return seconds


def _measured(contender: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the contender hands back from a process of its own, and the seconds of that whole process."""
    arguments = {"contender": contender, "folder": options.folder, "epochs": options.epochs}
    arguments |= {"trials": options.trials, "concurrent": options.concurrent}
    log = options.folder / f"{contender}.log"
    environment = {**ENVIRONMENT, **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}}
    start_s = time.perf_counter()
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *(f"--{name}={value}" for name, value in arguments.items())],
            stdout=file,
            stderr=file,
            env=environment,
        ) as process,
    ):
        process.wait()
    if process.returncode:
        sys.exit(f"{contender} failed:\n{log.read_text()}")
    result: dict[str, Any] = json.loads((options.folder / f"{contender}.json").read_text())
    return {**result, "trials": options.trials, "whole_s": time.perf_counter() - start_s}


def _hand_back(options: argparse.Namespace, **result: Any) -> None:
    (options.folder / f"{options.contender}.json").write_text(json.dumps(result))


def _spec_path(folder: Path, number: int) -> Path:
    return folder / f"spec-{number:03d}.json"


def _seconds(work: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def _table(rows: dict[str, dict[str, Any]], training_s: list[float], options: argparse.Namespace) -> Table:
    table = Table(
        title=f"Overhead of a trial: VAE, digits, {options.epochs} epochs, {options.concurrent} trials at a time",
        caption="overhead = (Tuner.fit() × trials at a time − training alone) / trials; whole: the entire process",
    )
    table.add_column("search")
    for column in ("trials", "Tuner.fit() s", "training alone s", "overhead s/trial", "whole s", "bar"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        alone_s = sum(training_s[: row["trials"]])
        overhead_s = (row["search_s"] * options.concurrent - alone_s) / row["trials"]
        met = "[green]met[/]" if overhead_s <= BAR_S else "[red]missed[/]"
        numbers = (f"{number:.1f}" for number in (row["search_s"], alone_s))
        bar = f"≤ {BAR_S:g} {met}" if name == "ours" else ""
        table.add_row(name, str(row["trials"]), *numbers, f"{overhead_s:.2f}", f"{row['whole_s']:.1f}", bar)
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Seconds per trial beyond training: ours, bare Tune, Tune over Train."
    )
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--concurrent", type=int, default=2, help="trials at a time, a core each")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--nested-trials", type=int, default=4, help="fewer, since each takes many seconds")
    parser.add_argument("--skip-nested", action="store_true")
    parser.add_argument("--contender", choices=["ours", "plain", "bare", "nested"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
