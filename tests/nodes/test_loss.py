"""Nodes of a real cluster are killed, drained and given back while jobs run on them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import Nodes, wait_until

from raygen.cluster.ray_jobs import RayJobs
from raygen.errors import ClusterUnreachableError
from raygen.plan import Plan
from raygen.record.run import Run
from raygen.record.view import Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.storage import Storage
from tests.cluster.weights import final_weights, training_writes, undisturbed

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


def create(folder: Path, kind: str, spec: TrainSpec, plan: Plan, name: str) -> Run:
    return Run.create(Storage(folder), kind, spec, plan, "min", name=name)


def submitted(jobs: RayJobs, run: Run) -> Run:
    """Have an attempt at the run begin, as the dispatcher does."""
    arguments = ["-u", "-m", "raygen.cluster.driver", run.storage.url, run.name, "1"]

    def is_accepted() -> bool:
        try:
            jobs.submit_python(f"{run.name}-1", arguments)
        except ClusterUnreachableError:
            return False
        return True

    wait_until(is_accepted, "the cluster to take the job")
    wait_until(lambda: bool(run.look().trials), "a trial")
    return run


def wait_for_end(run: Run) -> None:
    # Its process has begun, so a record without it is one that it has left.
    wait_until(lambda: run.look().status.state not in ("waiting", "running"), "the end of the run", patience_s=600)
    assert run.look().status.state == "finished", run.look().status.reason


def first_trial(run: Run) -> Trial:
    return run.look().trials[0]


def epochs_done(run: Run, number: int = 1) -> int:
    return len(run.look().trial(number).epochs)


def checkpoint_of(run: Run) -> str | None:
    return first_trial(run).progress.checkpoint


def in_state(run: Run, state: str) -> list[int]:
    return [trial.number for trial in run.look().trials if trial.state == state]


def seconds_until_it_goes_on(nodes: Nodes, run: Run, *, processes: int, instead_of: set[int]) -> float:
    """Wait until so many processes have trained an epoch in the place of those with the given ids."""
    began_at = time.monotonic()

    def are_there() -> bool:
        found = process_ids(nodes)
        return len(found) == processes and not found & instead_of

    wait_until(are_there, f"{processes} new processes")
    before = first_trial(run).epochs
    wait_until(lambda: first_trial(run).epochs != before, "another epoch")
    return time.monotonic() - began_at


def process_ids(nodes: Nodes) -> set[int]:
    return {process.pid for process in nodes.processes(WORKER)}


def assert_as_undisturbed(run: Run, folder: Path) -> None:
    trial = first_trial(run)
    assert [epoch.epoch for epoch in trial.epochs] == list(range(1, trial.progress.epochs_wanted + 1))
    expected, metrics = undisturbed(trial.spec(), folder / "undisturbed")
    weights = final_weights(run, trial, folder)
    whole, other = (torch.cat([each[name].flatten() for name in sorted(expected)]) for each in (expected, weights))
    difference = ((whole - other).norm() / whole.norm()).item()
    print(f"weights differ by {difference:.1e} from the undisturbed training's")
    assert difference <= 1e-5
    assert trial.epochs[-1].metrics == pytest.approx(metrics, rel=1e-3)


def test_a_training_outlives_a_node_that_is_drained_and_one_that_is_killed(
    nodes: Nodes, jobs: RayJobs, tmp_path: Path
) -> None:
    spec = TrainSpec.create("ae", {**SETTINGS, "training.checkpoint_every_s": 600})
    plan = Plan(concurrent=1, workers=2, gpus_per_worker=0, cpus_per_worker=1)
    run = submitted(jobs, create(tmp_path / "runs", "train", spec, plan, "shared"))
    wait_until(lambda: epochs_done(run) >= 3, "three epochs")
    assert checkpoint_of(run) is None

    drained, *_ = nodes.with_process(WORKER)
    first = process_ids(nodes)
    noticed_at = time.time()
    nodes.drain(drained, deadline_s=12)
    nodes.add()
    wait_until(lambda: checkpoint_of(run) is not None, "a checkpoint", patience_s=noticed_at + 12 - time.time())
    print(f"a checkpoint {time.time() - noticed_at:.1f} s after the notice")
    time.sleep(max(noticed_at + 12 - time.time(), 0))
    nodes.kill(drained)
    took_s = seconds_until_it_goes_on(nodes, run, processes=2, instead_of=first)
    print(f"went on {took_s:.1f} s after the drained node had gone")

    checkpoint, second = checkpoint_of(run), process_ids(nodes)
    nodes.kill(nodes.with_process(WORKER)[0])
    took_s = seconds_until_it_goes_on(nodes, run, processes=2, instead_of=second)
    print(f"went on {took_s:.1f} s after a node had been killed")
    assert checkpoint_of(run) == checkpoint, "one was not due"
    wait_for_end(run)
    assert_as_undisturbed(run, tmp_path)


def test_an_elastic_training_goes_on_with_the_nodes_that_are_left_and_takes_them_back(
    nodes: Nodes, jobs: RayJobs, tmp_path: Path
) -> None:
    spec = TrainSpec.create("ae", {**SETTINGS, "training.checkpoint_every_s": 2})
    plan = Plan(concurrent=1, workers=3, gpus_per_worker=0, cpus_per_worker=1, elastic_from=1)
    run = submitted(jobs, create(tmp_path / "runs", "train", spec, plan, "elastic"))
    wait_until(lambda: checkpoint_of(run) is not None, "a checkpoint")
    three = process_ids(nodes)
    assert len(three) == 3
    nodes.kill(nodes.with_process(WORKER)[0])
    took_s = seconds_until_it_goes_on(nodes, run, processes=2, instead_of=three)
    print(f"went on with two {took_s:.1f} s after a node had been killed")
    done, two = epochs_done(run), process_ids(nodes)
    nodes.add()
    took_s = seconds_until_it_goes_on(nodes, run, processes=3, instead_of=two)
    print(f"went on with three {took_s:.1f} s after a node had come")
    assert epochs_done(run) > done, "it ends with a checkpoint before it goes on with more"
    wait_for_end(run)
    assert_as_undisturbed(run, tmp_path)


def test_a_training_that_waits_for_nodes_ends_at_once_when_asked_to(
    nodes: Nodes, jobs: RayJobs, tmp_path: Path
) -> None:
    plan = Plan(concurrent=1, workers=4, gpus_per_worker=0, cpus_per_worker=1)
    run = submitted(jobs, create(tmp_path / "runs", "train", TrainSpec.create("ae", SETTINGS), plan, "patient"))
    wait_until(lambda: bool(nodes.processes("ResourceTrainable")), "the trial's actor")  # as Tune calls it
    time.sleep(3)
    assert not nodes.processes(WORKER)
    run.ask_to_stop(1)
    wait_until(lambda: run.look().status.state == "interrupted", "the end of the run", patience_s=10)


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
    run = submitted(jobs, create(tmp_path / "runs", "tune", spec, plan, "search"))
    wait_until(lambda: bool(in_state(run, "finished")), "a finished trial")
    wait_until(lambda: len(in_state(run, "running")) == 3, "a trial on every node")
    finished = training_writes(run, in_state(run, "finished"))
    killed_at = time.monotonic()
    nodes.kill(nodes.all[-1])
    others = [(number, epochs_done(run, number)) for number in in_state(run, "running")]
    wait_until(
        lambda: all(epochs_done(run, number) > done or number in in_state(run, "finished") for number, done in others),
        "every trial to go on",
    )
    print(f"all trials went on {time.monotonic() - killed_at:.1f} s after a node had been killed")
    wait_for_end(run)
    assert [trial.state for trial in run.look().trials] == ["finished"] * 6
    assert training_writes(run, finished) == finished, "finished, and run again"
    for trial in run.look().trials:
        assert [epoch.epoch for epoch in trial.epochs] == list(range(1, 41))
    assert len(run.look().best) == 3
