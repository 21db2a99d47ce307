"""Whole jobs on a real cluster, started and broken as people start and break them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import distributed
from torch.multiprocessing import spawn

import raygen as package
from raygen import data
from raygen.errors import RunError
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec
from raygen.training.checkpoint import MODEL, read_weights
from raygen.training.distributed import CPU, Group
from raygen.training.loop import fit

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Raygen = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
OnlyRun = Callable[[], Run]

PATIENCE_S = 120
CPUS = 2


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.1)


def final_weights(trial: Trial) -> dict[str, torch.Tensor]:
    return read_weights(trial.checkpoint, prefix=MODEL)


def undisturbed(spec: TrainSpec, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights and last metrics of the same training in one process that nothing disturbs."""
    *_, epoch = fit(spec, data.load(spec.data), path)
    return read_weights(path, prefix=MODEL), epoch.metrics


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, tensor in expected.items():
        assert (weights[name] - tensor).norm() <= tolerance * tensor.norm(), name


def test_a_search_ends_with_best_checkpoints_that_load_and_sample(
    raygen: Raygen, only_run: OnlyRun, tmp_path: Path
) -> None:
    done = raygen("tune", "vae", "--trials", "5", "--epochs", "4", "-o", "json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert "ray" not in done.stderr.lower().replace("raygen", ""), "Ray's own talk must not reach the screen"
    assert len(summary["trials"]) == 5
    values = [trial["objective"] for trial in summary["trials"]]
    assert values == sorted(values, reverse=True)
    assert len({trial["parameters"]["optimizer.lr"] for trial in summary["trials"]}) == 5
    run = only_run()
    assert [place.name for place in run.best_places()] == ["1", "2", "3"]
    for place, value in zip(run.best_places(), values, strict=False):
        trained = package.load(place)
        assert trained.metrics["value"] == value
        assert (place / "samples.png").stat().st_size > 0

    picture = tmp_path / "grid.png"
    assert raygen("sample", run.name, "--n", "9", "-o", str(picture)).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = raygen("show", run.name, "-o", "json")
    assert json.loads(shown.stdout) == json.loads((run.folder / "summary.json").read_text())
    assert json.loads(raygen("ls", "-o", "json").stdout)[0]["run"] == run.name
    assert "no unfinished trial" in raygen("tune", "--resume", run.name).stderr


def test_two_processes_train_what_one_does(raygen: Raygen, only_run: OnlyRun, tmp_path: Path) -> None:
    done = raygen("train", "gan", "--cpus", "2", "--workers", "2", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    [trial] = only_run().trials()
    weights, metrics = undisturbed(trial.spec(), tmp_path / "alone")
    assert_close(final_weights(trial), weights, tolerance=1e-5)
    assert trial.epochs()[-1]["metrics"] == pytest.approx(metrics, rel=1e-3)


def test_a_killed_worker_process_costs_nothing_but_time(start: Start, only_run: OnlyRun, tmp_path: Path) -> None:
    process = start(
        "train", "gan", "--workers", "2", "--epochs", "40", "--set", "training.checkpoint_every_s=0.5", "--quiet"
    )
    wait_until(lambda: len(workers_of_ray_train()) == 2, "two worker processes")
    [trial] = only_run().trials()
    wait_until(lambda: len(trial.epochs()) >= 5, "five epochs")
    wait_until(trial.checkpoint.exists, "a checkpoint")
    os.kill(workers_of_ray_train()[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "finished" in output
    assert [line["epoch"] for line in trial.epochs()] == list(range(1, 41))
    spawn(_undisturbed_process, args=(trial.spec().model_dump_json(), str(tmp_path)), nprocs=2)
    for name, tensor in read_weights(tmp_path / "checkpoint.safetensors", prefix=MODEL).items():
        assert torch.equal(final_weights(trial)[name], tensor), f"{name} differs from the undisturbed training"


def _undisturbed_process(rank: int, spec: str, folder: str) -> None:
    """One of two processes that do the same training without Ray, and without being killed."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    parsed = TrainSpec.model_validate_json(spec)
    for _ in fit(parsed, data.load(parsed.data), Path(folder) / "checkpoint.safetensors", group=Group.joined(CPU)):
        pass
    distributed.destroy_process_group()


def workers_of_ray_train() -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any("RayTrainWorker" in part for part in process.info["cmdline"] or [])
    ]


def test_ctrl_c_keeps_what_was_trained_and_resume_finishes_it(raygen: Raygen, start: Start, only_run: OnlyRun) -> None:
    process = start("tune", "ae", "--trials", "6", "--epochs", "150", "--scheduler", "fifo")
    wait_until(lambda: bool(process_runs(only_run)), "the run folder")
    run = only_run()
    wait_until(lambda: any(record.state == "finished" for record in run.records()), "a finished trial")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert f"raygen tune --resume {run.name}" in errors
    assert "Traceback" not in errors
    assert run.status().state == "interrupted"
    finished = {record.number: record for record in run.records() if record.state == "finished"}
    assert finished
    stamps = {number: (run.trial(number).folder / "epochs.jsonl").stat().st_mtime_ns for number in finished}

    resumed = raygen("tune", "--resume", run.name)
    assert resumed.returncode == 0, resumed.stderr
    assert [record.state for record in run.records()] == ["finished"] * 6
    for number, stamp in stamps.items():
        assert (run.trial(number).folder / "epochs.jsonl").stat().st_mtime_ns == stamp, "finished, and run again"
    assert run.best().is_dir()


def process_runs(only_run: OnlyRun) -> bool:
    try:
        return bool(only_run().records())
    except (ValueError, RunError):
        return False


def test_a_run_whose_processes_were_killed_is_interrupted_and_goes_on(
    raygen: Raygen, start: Start, only_run: OnlyRun
) -> None:
    process = start("train", "vae", "--epochs", "600", "--set", "training.checkpoint_every_s=0.2", "--quiet")
    wait_until(lambda: process_runs(only_run), "the run folder")
    run = only_run()
    [trial] = run.trials()
    wait_until(lambda: len(trial.epochs()) >= 3, "three epochs")
    assert run.status().state == "running"
    assert "is running already" in raygen("train", "--resume", run.name).stderr
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()
    wait_until(lambda: run.status().state == "interrupted", "the lock to be free")
    trained = len(trial.epochs())
    resumed = raygen("train", "--resume", run.name, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert [line["epoch"] for line in trial.epochs()] == list(range(1, 601))
    assert trained >= 3


def test_a_search_goes_on_past_trials_that_fail(raygen: Raygen, only_run: OnlyRun, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text(
        'model = "vae"\nobjective = "val_elbo"\ndirection = "max"\n'
        '[parameters]\n"optimizer.lr" = { choice = [1e-3, 1e30] }\n'
    )
    done = raygen("tune", "vae", "--space", str(space), "--trials", "6", "--epochs", "2", "--search", "random")
    assert done.returncode == 0, done.stderr
    states = {record.parameters["optimizer.lr"]: record for record in only_run().records()}
    assert states[1e-3].state in ("finished", "stopped")
    assert states[1e30].state == "failed"
    assert "is not finite at step" in states[1e30].reason
    assert "is not finite at step" in done.stdout


def test_a_training_that_fails_ends_with_one_line_and_code_1(raygen: Raygen) -> None:
    done = raygen("train", "vae", "--lr", "1e30", "--epochs", "1", "--verbose", "-o", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["state"] == "failed", "what Ray prints must not mix with the result"
    assert "the vae loss is not finite at step" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_search_over_trainings_of_two_processes(raygen: Raygen, only_run: OnlyRun) -> None:
    done = raygen("tune", "ae", "--trials", "2", "--epochs", "3", "--workers", "2", "--cpus", "2")
    assert done.returncode == 0, done.stderr
    run = only_run()
    assert run.plan.concurrent == 1
    assert all(record.objective is not None for record in run.records())
    assert not list(run.folder.rglob("ray")), "what Ray wrote for itself is removed"


def test_a_cluster_that_asks_for_a_token_is_joined_with_it_and_named_without(
    raygen: Raygen, environment: dict[str, str], head_with_token: str, only_run: OnlyRun
) -> None:
    port = int(head_with_token.rpartition(":")[2])
    wait_until(lambda: listens(port), "the head")
    refused = raygen("train", "vae", "--address", head_with_token)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert "set RAY_AUTH_MODE=token" in line

    environment["RAY_AUTH_MODE"] = "token"
    refused = raygen("tune", "vae", "--address", head_with_token, "--gpus", "4")
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert f"the cluster at {head_with_token} has 0 GPUs and {CPUS} CPU cores" in line
    done = raygen("train", "vae", "--address", head_with_token, "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert only_run().status().state == "finished"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
