"""What the policy starts together Ray places together, on nodes that only pretend to have GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.node import Node
from ray.util import placement_group
from ray_nodes import Nodes, wait_until

from raygen.cluster.ray_jobs import RayJobs
from raygen.plan import plan_training
from raygen.queue.job import Request
from raygen.queue.store import Store
from raygen.spec import Resources
from raygen.storage import Storage

pytestmark = pytest.mark.cluster

PLACED_WITHIN_S = 20


@pytest.fixture
def big(nodes: Nodes) -> Iterator[Node]:
    """A further node, which says that it has 8 GPUs and 64 CPU cores."""
    big = nodes.add(num_cpus=64, num_gpus=8)
    yield big
    nodes.kill(big)


def test_eight_jobs_of_one_gpu_start_at_once_on_a_node_of_eight(nodes: Nodes, big: Node, tmp_path: Path) -> None:
    capacity = RayJobs(nodes.address, remote=True).capacity()
    plan = plan_training(Resources(gpus=1), capacity)
    assert (plan.gpus_per_worker, plan.cpus_per_worker) == (1, 8)
    store = Store.open(Storage(tmp_path))
    about = {"kind": "train", "model": "vae", "data": "digits", "user": "me", "cluster": nodes.address}
    for number in range(9):
        request = Request(
            name=f"job-{number}",
            storage=str(tmp_path),
            objective="val_elbo",
            processes=plan.processes,
            fewest_processes=plan.fewest_processes,
            gpus_each=plan.gpus_per_worker,
            cpus_each=plan.cpus_per_worker,
            **about,
        )
        store.submit(request)
    dispatcher = store.register(nodes.address, host="here", pid=1)
    store.saw(nodes.address, capacity)
    claimed = []
    while (job := store.claim(dispatcher)) is not None:
        claimed.append(job.name)
    assert claimed == [f"job-{number}" for number in range(8)]
    waiting = store.find("job-8")
    assert store.reasons([waiting]) == {waiting.id: "waiting for 1 of 1 GPU"}

    ray.init(address=nodes.gcs_address, log_to_driver=False)
    try:
        groups = [placement_group([{"GPU": 1, "CPU": 8}]) for _ in claimed]
        assert all(group.wait(PLACED_WITHIN_S) for group in groups), "Ray does not place what the policy started"
        # A group counts as placed before its node has reported what is left.
        wait_until(lambda: free_on(big) == (0, 0), "Ray to hold all of the node for the jobs")
    finally:
        ray.shutdown()


def free_on(node: Node) -> tuple[float, float]:
    """The GPUs and CPU cores of a node that Ray has not given away."""
    free = ray._private.state.available_resources_per_node()[node.node_id]
    return free.get("GPU", 0), free.get("CPU", 0)
