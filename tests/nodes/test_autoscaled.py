"""Ray's own autoscaler on this machine: nodes come for what waits for them, and go when nothing needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from autoscaled import Observed

pytestmark = pytest.mark.cluster

RESERVE = Path(__file__).with_name("reserve.py")


def test_nodes_come_for_waiting_placement_groups_and_go_again(autoscaled: Callable[..., Observed]) -> None:
    observed = autoscaled([sys.executable, str(RESERVE), "2"], node={"CPU": 1})
    print(observed)
    assert observed.exit_code == 0, observed.output
    assert [observed.nodes_alive[0][1], observed.most_alive, observed.nodes_alive[-1][1]] == [0, 2, 0]


def test_nodes_have_the_devices_that_they_are_said_to_have(autoscaled: Callable[..., Observed]) -> None:
    observed = autoscaled([sys.executable, str(RESERVE), "1"], node={"CPU": 2, "GPU": 4}, max_nodes=1)
    assert observed.exit_code == 0, observed.output
    (node,) = observed.nodes
    assert (node["resources_total"]["CPU"], node["resources_total"]["GPU"]) == (2, 4)
