"""Jobs on a cluster that has no nodes but can get some: they are planned for them, wait for them, and let them go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from autoscaled import DASHBOARD, Observed

from raygen.record.run import Run
from raygen.storage import Storage

pytestmark = pytest.mark.cluster

# What a person types, and beside it what `raygen ls` says until the job has ended.
SESSION = """
raygen cluster set --max cpus=2 --node cpus=1
raygen status
raygen tune vae --trials 4 --epochs 3 --name first --detach
while [ "$(raygen ls -o json | tee -a {said} | grep -c '"state": "succeeded"')" = 0 ]; do sleep 0.5; done
raygen status -o json >{status}
raygen ls
"""


def test_a_search_has_nodes_come_and_go(autoscaled: Callable[..., Observed], tmp_path: Path) -> None:
    said, status = tmp_path / "said", tmp_path / "status.json"
    script = SESSION.format(said=said, status=status)
    environment = {"RAYGEN_STORAGE": str(tmp_path / "runs"), "RAYGEN_ADDRESS": DASHBOARD}
    observed = autoscaled(["bash", "-ec", script], node={"CPU": 1}, environment=environment)
    print(observed, observed.output, sep="\n")
    assert observed.exit_code == 0, observed.output
    assert [observed.nodes_alive[0][1], observed.most_alive, observed.nodes_alive[-1][1]] == [0, 2, 0]
    assert "2 nodes with 1 CPU core each" in observed.output
    assert "waiting for 2 more nodes with 1 CPU core" in said.read_text()
    shown = json.loads(status.read_text())
    assert shown["on_demand"] == {"most": 2, "gpus": 0, "cpus": 1}
    assert shown["unreachable_since"] is None
    assert all("idle" in node["state_message"] for node in observed.nodes), "nothing but idleness ends a node"
    states = [trial.state for trial in Run(Storage(tmp_path / "runs"), "first").look().trials]
    assert len(states) == 4
    assert set(states) <= {"finished", "stopped"}
