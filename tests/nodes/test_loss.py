"""Nodes of a real cluster are killed, drained and given back while jobs run on them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import Nodes, wait_until

from raygen import data
from raygen.cluster.ray_jobs import RayJobs
from raygen.errors import ClusterUnreachableError
from raygen.plan import Plan
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.training.checkpoint import MODEL, read_weights
from raygen.training.loop import fit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

WORKER = "RayTrainWorker"

# Few and slow steps, each an epoch, at a rate at which rounding does not grow.
SETTINGS: dict[str, Any] = {
    "model.arch": "conv",
    "model.width": 256,
    "training.batch_size": 1400,
    "training.epochs": 120,
    "optimizer.lr": 2e-5,
}


@pytest.fixture
def jobs(nodes: Nodes) -> RayJobs:
    return RayJobs(nodes.address, remote=True)


def submitted(jobs: RayJobs, run: Run, attempt: int = 1) -> Run:
    """Have an attempt at the run begin, as the dispatcher does."""

    def is_accepted() -> bool:
        try:
            jobs.submit(f"{run.name}-{attempt}", run.folder, attempt)
        except ClusterUnreachableError:
            return False
        return True

    run.begin_attempt(attempt)
    wait_until(is_accepted, "the cluster to take the job")
    wait_until(lambda: bool(run.trials()), "a trial")
    return run


def wait_for_end(run: Run) -> None:
    wait_until(lambda: run.status().state not in ("waiting", "running"), "the end of the run", patience_s=600)
    assert run.status().state == "finished", run.status().reason


def epochs_done(trial: Trial) -> int:
    return len(trial.epochs())


def in_state(run: Run, state: str) -> list[Trial]:
    return [trial for trial in run.trials() if trial.status().state == state]


def written_at(trial: Trial) -> int:
    return (trial.folder / "epochs.jsonl").stat().st_mtime_ns


def seconds_until_it_goes_on(nodes: Nodes, trial: Trial, *, processes: int, instead_of: set[int]) -> float:
    """Wait until so many processes have trained an epoch in the place of those with the given ids."""
    began_at = time.monotonic()

    def are_there() -> bool:
        found = process_ids(nodes)
        return len(found) == processes and not found & instead_of

    wait_until(are_there, f"{processes} new processes")
    before = written_at(trial)
    wait_until(lambda: written_at(trial) > before, "another epoch")
    return time.monotonic() - began_at


def process_ids(nodes: Nodes) -> set[int]:
    return {process.pid for process in nodes.processes(WORKER)}


def assert_as_undisturbed(trial: Trial, path: Path) -> None:
    assert [line["epoch"] for line in trial.epochs()] == list(range(1, trial.number_of_epochs + 1))
    spec = trial.spec()
    *_, last = fit(spec, data.load(spec.data), path)
    expected, weights = (read_weights(file, prefix=MODEL) for file in (path, trial.checkpoint))
    whole, other = (torch.cat([each[name].flatten() for name in sorted(expected)]) for each in (expected, weights))
    difference = ((whole - other).norm() / whole.norm()).item()
    print(f"weights differ by {difference:.1e} from the undisturbed training's")
    assert difference <= 1e-5
    assert trial.epochs()[-1]["metrics"] == pytest.approx(last.metrics, rel=1e-3)


def test_a_training_outlives_a_node_that_is_drained_and_one_that_is_killed(
    nodes: Nodes, jobs: RayJobs, tmp_path: Path
) -> None:
    spec = TrainSpec.create("ae", {**SETTINGS, "training.checkpoint_every_s": 600})
    plan = Plan(concurrent=1, workers=2, gpus_per_worker=0, cpus_per_worker=1)
    run = submitted(jobs, Run.create(tmp_path, "train", spec, plan, "min", name="shared"))
    [trial] = run.trials()
    wait_until(lambda: epochs_done(trial) >= 3, "three epochs")
    assert not trial.checkpoint.exists()

    drained, *_ = nodes.with_process(WORKER)
    first = process_ids(nodes)
    noticed_at = time.time()
    nodes.drain(drained, deadline_s=12)
    nodes.add()
    wait_until(trial.checkpoint.exists, "a checkpoint", patience_s=noticed_at + 12 - time.time())
    print(f"a checkpoint {trial.checkpoint.stat().st_mtime - noticed_at:.1f} s after the notice")
    assert trial.checkpoint.stat().st_mtime > noticed_at
    time.sleep(max(noticed_at + 12 - time.time(), 0))
    nodes.kill(drained)
    took_s = seconds_until_it_goes_on(nodes, trial, processes=2, instead_of=first)
    print(f"went on {took_s:.1f} s after the drained node had gone")

    checkpoint, second = trial.checkpoint.stat().st_mtime_ns, process_ids(nodes)
    nodes.kill(nodes.with_process(WORKER)[0])
    took_s = seconds_until_it_goes_on(nodes, trial, processes=2, instead_of=second)
    print(f"went on {took_s:.1f} s after a node had been killed")
    assert trial.checkpoint.stat().st_mtime_ns == checkpoint, "one was not due"
    wait_for_end(run)
    assert_as_undisturbed(trial, tmp_path / "undisturbed")


def test_an_elastic_training_goes_on_with_the_nodes_that_are_left_and_takes_them_back(
    nodes: Nodes, jobs: RayJobs, tmp_path: Path
) -> None:
    spec = TrainSpec.create("ae", {**SETTINGS, "training.checkpoint_every_s": 2})
    plan = Plan(concurrent=1, workers=3, gpus_per_worker=0, cpus_per_worker=1, elastic_from=1)
    run = submitted(jobs, Run.create(tmp_path, "train", spec, plan, "min", name="elastic"))
    [trial] = run.trials()
    wait_until(trial.checkpoint.exists, "a checkpoint")
    three = process_ids(nodes)
    assert len(three) == 3
    nodes.kill(nodes.with_process(WORKER)[0])
    took_s = seconds_until_it_goes_on(nodes, trial, processes=2, instead_of=three)
    print(f"went on with two {took_s:.1f} s after a node had been killed")
    done, two = epochs_done(trial), process_ids(nodes)
    nodes.add()
    took_s = seconds_until_it_goes_on(nodes, trial, processes=3, instead_of=two)
    print(f"went on with three {took_s:.1f} s after a node had come")
    assert epochs_done(trial) > done, "it ends with a checkpoint before it goes on with more"
    wait_for_end(run)
    assert_as_undisturbed(trial, tmp_path / "undisturbed")


def test_a_training_that_waits_for_nodes_ends_at_once_when_asked_to(
    nodes: Nodes, jobs: RayJobs, tmp_path: Path
) -> None:
    plan = Plan(concurrent=1, workers=4, gpus_per_worker=0, cpus_per_worker=1)
    run = submitted(jobs, Run.create(tmp_path, "train", TrainSpec.create("ae", SETTINGS), plan, "min", name="patient"))
    [trial] = run.trials()
    wait_until(lambda: trial.status().state == "running", "the trial's actor")
    time.sleep(3)
    assert not nodes.processes(WORKER)
    run.ask_to_stop()
    wait_until(lambda: run.status().state == "interrupted", "the end of the run", patience_s=10)


def test_a_search_goes_on_when_a_node_is_killed(nodes: Nodes, jobs: RayJobs, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text(
        'model = "ae"\nobjective = "val_mse"\ndirection = "min"\n'
        '[parameters]\n"optimizer.beta1" = { uniform = [0.5, 0.9] }\n'
    )
    settings = {"search.trials": 6, "search.scheduler": "fifo", "training.checkpoint_every_s": 2}
    shorter = {"training.epochs": 40, "model.width": 128}
    spec = TuneSpec.search_over(str(space), "ae", {**SETTINGS, **shorter, **settings})
    plan = Plan(concurrent=3, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    run = submitted(jobs, Run.create(tmp_path, "tune", spec, plan, "min", name="search"))
    wait_until(lambda: bool(in_state(run, "finished")), "a finished trial")
    wait_until(lambda: len(in_state(run, "running")) == 3, "a trial on every node")
    finished = {trial.number: written_at(trial) for trial in in_state(run, "finished")}
    killed_at = time.monotonic()
    nodes.kill(nodes.all[-1])
    others = [(trial, epochs_done(trial)) for trial in in_state(run, "running")]
    wait_until(
        lambda: all(epochs_done(trial) > done or trial.status().state == "finished" for trial, done in others),
        "every trial to go on",
    )
    print(f"all trials went on {time.monotonic() - killed_at:.1f} s after a node had been killed")
    wait_for_end(run)
    assert [trial.status().state for trial in run.trials()] == ["finished"] * 6
    assert {number: written_at(run.trial(number)) for number in finished} == finished, "finished, and run again"
    for trial in run.trials():
        assert [line["epoch"] for line in trial.epochs()] == list(range(1, 41))
    assert len(run.best_places()) == 3
