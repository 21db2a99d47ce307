"""`raygen cluster`, and plans and status for a cluster of several nodes, as far as no Ray is needed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from raygen.capacity import Capacity, LostNode, Node
from raygen.queue.job import Placement, Request
from raygen.queue.store import Store
from raygen.storage import Storage

ADDRESS = "http://127.0.0.1:1"
"""Where nobody answers."""
SET = "cluster set --max gpus=16,cpus=128 --node gpus=8,cpus=64"


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    return CliRunner(env={"RAYGEN_STORAGE": str(tmp_path / "runs"), "RAY_ADDRESS": "", "RAYGEN_ADDRESS": ""})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A queue whose dispatcher has seen a head without GPUs, two nodes, and a third that was lost."""
    store = Store.open(Storage(tmp_path / "runs"))
    nodes = [
        Node(id=f"id-{number}", name=f"n{number}", gpus=gpus, cpus=cpus)
        for number, (gpus, cpus) in enumerate([(0, 32), (8, 64), (8, 64)])
    ]
    gone = LostNode(id="id-9", name="n9", gpus=8, cpus=64, lost_at=time.time(), problem="it [/was] switched off")
    store.register(ADDRESS, host="elsewhere", pid=1)
    store.saw(ADDRESS, Capacity(nodes=tuple(nodes), lost=(gone,), where="the cluster"))
    return store


def request(name: str, storage: Path, **fields: float) -> Request:
    about = {"kind": "train", "model": "ae", "data": "digits", "objective": "val_mse", "user": "me"}
    devices = {"processes": 3, "fewest_processes": 1, "gpus_each": 1, "cpus_each": 8}
    return Request(name=name, storage=str(storage), cluster=ADDRESS, **about, **(devices | fields))


REFUSED = {
    SET: "this machine's own cluster gets no more nodes; name one that has an autoscaler with --address",
    "cluster unset": "name one that has an autoscaler with --address",
    f"{SET} --address 127.0.0.1:1": "write http://HOST:8265",
    f"cluster set --max gpus=16 --node gpus=8 --address {ADDRESS}": "name its CPU cores too, such as --node gpus",
    f"cluster set --max gpus=16 --node gpus=8,cpus=0 --address {ADDRESS}": "name its CPU cores too",
    f"cluster set --max gpus=4,cpus=99 --node gpus=8,cpus=64 --address {ADDRESS}": "--max gpus=4,cpus=99 has no room",
    f"cluster set --max gpus=8 --node cpus=64 --address {ADDRESS}": "--max gpus=8 has no room",
    f"cluster set --max cpus=0 --node cpus=4 --address {ADDRESS}": "--max cpus=0 has no room",
    f"cluster set --max gpus=x --node cpus=4 --address {ADDRESS}": "--max gpus=x: write numbers of devices",
    f"cluster set --max gpus=-1 --node cpus=4 --address {ADDRESS}": "--max gpus=-1: write numbers of devices",
    f"cluster set --max gpus --node cpus=4 --address {ADDRESS}": "--max gpus: write numbers of devices",
    f"cluster set --max gpus=8,gpus=8 --node cpus=4 --address {ADDRESS}": "write numbers of devices, such as --max",
    f"cluster set --max gpus=8 --node tpus=8,cpus=4 --address {ADDRESS}": "write numbers of devices, such as --node",
    f"cluster set --max gpus=8 --node cpus=1.5 --address {ADDRESS}": "write numbers of devices, such as --node",
    f"cluster set --node cpus=4 --address {ADDRESS}": "--max",
    f"cluster set --max cpus=4 --address {ADDRESS}": "--node",
    f"cluster add --address {ADDRESS}": "No such command 'add'",
    "train vae --workers 4-1": "workers: name 1 process or more, the fewest first, such as 1-4, got '4-1'",
    "train vae --workers few": "workers: write a number of processes, or a range such as 1-4, got 'few'",
    "tune vae --workers 0": "workers: name 1 process or more",
    "train vae --node-timeout -1": "--node-timeout",
    "train vae --node-timeout soon": "--node-timeout",
}


@pytest.mark.parametrize("command", REFUSED)
def test_bad_input_gets_one_line_and_code_2(runner: CliRunner, tmp_path: Path, command: str) -> None:
    result = runner.invoke(app, command.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert REFUSED[command] in line
    assert not (tmp_path / "runs").exists(), "nothing may be left of what was refused"


def test_a_cluster_that_does_not_answer_still_shows_what_was_declared(runner: CliRunner) -> None:
    declared = runner.invoke(app, [*SET.split(), "--address", ADDRESS])
    assert declared.exit_code == 0, declared.output
    assert "up to 2 nodes with 8 GPUs and 64 CPU cores each may come" in declared.output
    shown = runner.invoke(app, ["status", "--address", ADDRESS, "-o", "json"])
    assert shown.exit_code == 0, shown.output
    status = json.loads(shown.stdout)
    assert status["on_demand"] == {"most": 2, "gpus": 8, "cpus": 64}
    assert (status["nodes"], status["lost_nodes"], status["gpus"], status["cpus"]) == ([], [], None, None)
    assert status["unreachable_since"] is not None
    assert f"no answer from {ADDRESS}" in status["problem"]
    table = runner.invoke(app, ["status", "--address", ADDRESS])
    assert table.exit_code == 0, table.output
    assert "up to 2 nodes with 8 GPUs and 64 CPU cores each" in table.stdout
    assert "unreachable since" in table.stdout
    assert "Traceback" not in table.output
    assert "ray[default]" in table.stdout, "what a cluster says is shown as it is"

    unset = runner.invoke(app, ["cluster", "unset", "--address", ADDRESS])
    assert unset.exit_code == 0, unset.output
    assert "no nodes come on demand" in unset.output
    status = json.loads(runner.invoke(app, ["status", "--address", ADDRESS, "-o", "json"]).stdout)
    assert status["on_demand"] is None


@pytest.mark.parametrize(
    ("arguments", "nodes"),
    [
        ("--max gpus=16 --node gpus=8,cpus=64", {"most": 2, "gpus": 8, "cpus": 64}),
        ("--max gpus=16,cpus=100 --node gpus=8,cpus=64", {"most": 1, "gpus": 8, "cpus": 64}),
        ("--max cpus=64 --node cpus=16", {"most": 4, "gpus": 0, "cpus": 16}),
        ("--max cpus=64 --node gpus=0,cpus=16", {"most": 4, "gpus": 0, "cpus": 16}),
    ],
)
def test_the_least_of_what_is_named_limits_the_nodes_to_come(
    runner: CliRunner, tmp_path: Path, arguments: str, nodes: dict[str, int]
) -> None:
    declared = runner.invoke(app, ["cluster", "set", *arguments.split(), "--address", ADDRESS])
    assert declared.exit_code == 0, declared.output
    on_demand = Store.open(Storage(tmp_path / "runs")).cluster(ADDRESS).on_demand
    assert on_demand is not None
    assert vars(on_demand) == nodes


def test_status_lists_nodes_what_runs_there_and_what_was_lost(runner: CliRunner, store: Store, tmp_path: Path) -> None:
    job = store.submit(request("elastic", tmp_path))
    [dispatcher] = store.dispatchers()
    assert store.claim(dispatcher.id) is not None
    store.saw_placed(store.get(job.id), Placement(places={"id-1": 2}, pending=1))
    status = json.loads(runner.invoke(app, ["status", "--address", ADDRESS, "-o", "json"]).stdout)
    assert [(node["name"], node["jobs"]) for node in status["nodes"]] == [
        ("n0", {}),
        ("n1", {"elastic": 2}),
        ("n2", {}),
    ]
    assert [node["name"] for node in status["lost_nodes"]] == ["n9"]
    in_use = (status["gpus_in_use"], status["gpus"], status["cpus_in_use"], status["cpus"])
    assert in_use == (2, 16, 16, 160), "a process without a node uses nothing"
    table = runner.invoke(app, ["status", "--address", ADDRESS])
    assert table.exit_code == 0, table.output
    flat = " ".join(table.stdout.split())
    assert "node n0 (id-0) 32 CPU cores; nothing runs there" in flat
    assert "node n1 (id-1) 8 GPUs and 64 CPU cores; 2 of elastic" in flat
    assert "lost n9 (id-9) 8 GPUs and 64 CPU cores, at " in flat
    assert "it [/was] switched off" in flat


CHECK = "status --check -o json --address"


def test_a_probe_hears_by_the_exit_code_whether_jobs_would_start(runner: CliRunner, store: Store) -> None:
    well = runner.invoke(app, [*CHECK.split(), ADDRESS])
    assert (well.exit_code, well.stderr) == (0, "")
    store.lost_sight(ADDRESS, "it [/is] away")
    away = runner.invoke(app, [*CHECK.split(), ADDRESS])
    assert (away.exit_code, away.stderr) == (3, f"raygen: the cluster at {ADDRESS} does not answer: it [/is] away\n")
    assert json.loads(away.stdout)["problem"] == "it [/is] away", "what status shows is shown"
    assert runner.invoke(app, ["status", "--address", ADDRESS]).exit_code == 0, "status alone only tells"


def test_a_probe_hears_that_no_dispatcher_works(runner: CliRunner, store: Store) -> None:
    [dispatcher] = store.dispatchers()
    store.leave(dispatcher.id)
    ended = runner.invoke(app, [*CHECK.split(), ADDRESS])
    assert ended.exit_code == 3
    assert len(ended.stderr.splitlines()) == 1


def test_a_probe_hears_of_a_hold_and_of_a_storage_that_is_away(runner: CliRunner, store: Store) -> None:
    store.hold_cluster(ADDRESS, "ann")
    held = runner.invoke(app, [*CHECK.split(), ADDRESS])
    assert (held.exit_code, held.stderr) == (3, f"raygen: ann holds the queue of the cluster at {ADDRESS}\n")
    store.release_cluster(ADDRESS, "ann")
    [dispatcher] = store.dispatchers()
    store.saw_away(dispatcher.id, {json.loads(held.stdout)["storage"]: "it is not mounted"})
    away = runner.invoke(app, [*CHECK.split(), ADDRESS])
    assert (away.exit_code, away.stderr) == (3, "raygen: it is not mounted\n")


def test_a_probe_hears_that_only_others_jobs_would_start(runner: CliRunner, store: Store) -> None:
    [dispatcher] = store.dispatchers()
    store.leave(dispatcher.id)
    store.register(ADDRESS, host=dispatcher.host, pid=dispatcher.pid, user="bob", process=dispatcher.process)
    others = runner.invoke(app, [*CHECK.split(), ADDRESS])
    assert others.exit_code == 3
    said = f"no dispatcher starts your jobs on the cluster at {ADDRESS}; `raygen dispatch --address {ADDRESS}` is one"
    assert others.stderr == f"raygen: {said}\n"


def test_a_probe_hears_that_nothing_runs_here(runner: CliRunner) -> None:
    nothing = runner.invoke(app, ["status", "--check"])
    said = "raygen: Ray does not run on this machine; `raygen up` starts it\n"
    assert (nothing.exit_code, nothing.stderr) == (3, said)


def test_a_range_of_workers_is_planned_and_kept(runner: CliRunner, store: Store) -> None:
    result = runner.invoke(app, ["train", "vae", "--workers", "1-4", "--dry-run", "--address", ADDRESS])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["spec"]["resources"]["workers"] == [1, 4]
    assert printed["plan"] == {
        "concurrent": 1,
        "workers": 4,
        "gpus_per_worker": 1,
        "cpus_per_worker": 8,
        "elastic_from": 1,
    }
    assert "4 GPUs in 1 to 4 processes" in result.stderr
    said = "of training images lie on the GPU if they fit beside the model, else on the host"
    assert said in " ".join(result.stderr.split())


def test_jobs_are_planned_for_nodes_to_come(runner: CliRunner, store: Store) -> None:
    assert runner.invoke(app, ["cluster", "set", "--max=gpus=24", "--node=gpus=8,cpus=64", "--address", ADDRESS])
    planned = runner.invoke(app, ["tune", "vae", "--gpus", "24", "--dry-run", "--trials=50", "--address", ADDRESS])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["plan"]["concurrent"] == 24
    refused = runner.invoke(app, ["tune", "vae", "--gpus", "25", "--dry-run", "--address", ADDRESS])
    assert refused.exit_code == 2
    assert "on 4 nodes, the largest with 8 GPUs and 64 CPU cores; type --gpus 24" in " ".join(refused.stderr.split())


def test_how_long_a_job_keeps_its_place_without_nodes_is_stored_with_it(store: Store, tmp_path: Path) -> None:
    patient = store.submit(request("patient", tmp_path, node_timeout_s=90.5))
    assert store.get(patient.id).node_timeout_s == 90.5
    assert store.get(store.submit(request("usual", tmp_path)).id).node_timeout_s is None


def test_the_address_may_come_from_the_environment(runner: CliRunner) -> None:
    assert "RAYGEN_ADDRESS" not in os.environ
    declared = runner.invoke(app, SET.split(), env={"RAYGEN_ADDRESS": ADDRESS})
    assert declared.exit_code == 0, declared.output


def test_a_dry_run_on_gpus_needs_no_images(runner: CliRunner, store: Store, tmp_path: Path) -> None:
    command = ["tune", "vae", "--gpus-per-trial", "auto", "--data", str(tmp_path / "none"), "--dry-run"]
    result = runner.invoke(app, [*command, "--address", ADDRESS])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["spec"]["resources"]["gpus_per_trial"] == "auto"
    assert printed["plan"]["gpus_per_worker"] == 1
    assert "training images" not in result.stderr
    assert "1 GPU each, or as many on each GPU as are measured to be best" in " ".join(result.stderr.split())
