"""Jobs as people type them on a cluster of three nodes with one CPU core each, of which one dies in the middle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import Nodes, wait_until

from raygen.queue.job import JobState
from tests.typed_commands import Queue

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LONG = "--epochs 250 --set training.checkpoint_every_s=1"
ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@pytest.fixture
def queue(nodes: Nodes, tmp_path: Path) -> Iterator[Queue]:
    """An empty queue for the jobs of that cluster."""
    queue = Queue(tmp_path / "storage")
    queue.environment |= {"RAY_AUTH_MODE": "disabled", "RAYGEN_ADDRESS": nodes.address}
    yield queue
    for job in queue.store.list():
        if job.state not in ENDED:
            queue.raygen("cancel", job.name)
            queue.wait_for(job.name, *ENDED)


def started(queue: Queue, command: str, name: str) -> None:
    done = queue.raygen(*command.split(), "--name", name, "--detach")
    assert done.returncode == 0, done.stderr


def succeeded(queue: Queue, name: str) -> None:
    queue.wait_for(name, *ENDED)
    job = queue.job(name)
    assert (job.state, job.reason) == (JobState.SUCCEEDED, ""), queue.raygen("logs", name).stdout[-3000:]
    states = [record.state for record in queue.run(name).records()]
    assert set(states) <= {"finished", "stopped"}


def shown(queue: Queue) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(queue.raygen("status", "-o", "json").stdout)
    return status


def reason(queue: Queue, name: str) -> str:
    job = queue.job(name)
    return queue.store.reasons([job]).get(job.id, "")


def has_begun(queue: Queue, name: str, *, epochs: int = 3) -> None:
    def epochs_seen() -> int:
        return max((record.epoch for record in queue.run(name).records()), default=0)

    wait_until(lambda: epochs_seen() >= epochs, f"{epochs} epochs of {name}")


def kill_one_with_a_process(nodes: Nodes, queue: Queue, name: str) -> str:
    """Kill a node on which the job's processes are, if one of them is not the head; returns the node's id."""
    wait_until(lambda: bool(queue.job(name).places), f"the places of {name} to be known")
    places = queue.job(name).places
    [*victims] = [node for node in nodes.all if node.node_id in places and node is not nodes.head]
    others = [node for node in nodes.all if node is not nodes.head]
    victim = (victims or others)[0]
    nodes.kill(victim)
    return str(victim.node_id)


def test_with_no_further_option_jobs_are_planned_for_the_nodes_and_end(nodes: Nodes, queue: Queue) -> None:
    for name, command in {
        "one": "train vae --epochs 2",
        "elastic": "train vae --workers 1-3 --epochs 2",
        "search": "tune vae --trials 4 --epochs 2",
    }.items():
        done = queue.raygen(*command.split(), "--name", name)
        assert done.returncode == 0, done.stderr
        succeeded(queue, name)
    assert [queue.run(name).look().plan.each.cpus for name in ("one", "elastic", "search")] == [1, 1, 1]
    assert queue.run("search").look().plan.concurrent == 3
    refused = queue.raygen("train", "vae", "--cpus", "3")
    assert refused.returncode == 2
    assert "3 nodes, the largest with 0 GPUs and 1 CPU core; type --cpus 1" in refused.stderr


@pytest.mark.parametrize(
    ("command", "trials"),
    [("train vae", 1), ("train vae --workers 1-3", 1), ("tune vae --trials 6 --scheduler fifo", 6)],
)
def test_a_job_ends_although_a_node_dies_and_the_queue_goes_on(
    nodes: Nodes, queue: Queue, command: str, trials: int
) -> None:
    started(queue, f"{command} {LONG}", "job")
    has_begun(queue, "job")
    victim = kill_one_with_a_process(nodes, queue, "job")
    started(queue, "train ae --epochs 1 --cpus 1", "after")
    succeeded(queue, "job")
    succeeded(queue, "after")
    assert len(queue.run("job").records()) == trials
    status = shown(queue)
    assert status["unreachable_since"] is None
    assert {node["id"] for node in status["nodes"]} == {node.node_id for node in nodes.all}
    [problem] = [node["problem"] for node in status["lost_nodes"] if node["id"] == victim]
    assert "health check failed" in problem


def test_a_training_that_lost_a_node_says_what_it_waits_for_until_one_comes(nodes: Nodes, queue: Queue) -> None:
    started(queue, f"train vae --workers 3 {LONG}", "three")
    has_begun(queue, "three")
    kill_one_with_a_process(nodes, queue, "three")
    wait_until(lambda: reason(queue, "three") != "", "a reason")
    assert reason(queue, "three") == "waiting for nodes with room for all of its 3 processes, 1 CPU core each"
    nodes.wait_for_nodes()
    # What fitted an hour ago is not refused: the node may come back.
    started(queue, "train vae --workers 3 --epochs 1", "again")
    wait_until(lambda: "more than there is" in reason(queue, "again"), "the queue to see that a node has gone")
    assert "was lost at" in reason(queue, "again")
    nodes.add()
    succeeded(queue, "three")
    succeeded(queue, "again")
    assert queue.job("three").attempt == 1


def test_a_job_that_finds_no_node_gives_its_place_back(nodes: Nodes, queue: Queue) -> None:
    started(queue, f"train vae --workers 3 {LONG} --node-timeout 3 --retries 0", "patient")
    has_begun(queue, "patient")
    kill_one_with_a_process(nodes, queue, "patient")
    queue.wait_for("patient", JobState.RECOVERING)
    assert "no node had room" in queue.store.attempts(queue.job("patient"))[-1].outcome
    started(queue, "train ae --epochs 1 --cpus 1", "other")
    succeeded(queue, "other")
    nodes.add()
    succeeded(queue, "patient")
    assert (queue.job("patient").attempt, queue.job("patient").losses) == (2, 0)
