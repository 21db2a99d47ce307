"""What the tests with several nodes share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from autoscaled import Observed, run_autoscaled
from namespaces import why_not
from ray_nodes import Nodes

NODES = 3


@pytest.fixture(scope="session")
def running_nodes() -> Iterator[Nodes]:
    """A cluster of a head and two more nodes, for all tests that need one."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        # What jobs call `python` on these nodes.
        environment.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        nodes = Nodes(NODES)
        yield nodes
        nodes.close()


@pytest.fixture
def nodes(running_nodes: Nodes) -> Nodes:
    """The cluster with as many nodes as at first: what one test did to them must not meet another."""
    for node in [node for node in running_nodes.all if node is not running_nodes.head][NODES - 1 :]:
        running_nodes.kill(node)
    while len(running_nodes.all) < NODES:
        running_nodes.add()
    running_nodes.wait_for_nodes()
    return running_nodes


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips if a command cannot have namespaces of its own."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def autoscaled(namespaces: None, tmp_path: Path) -> Callable[..., Observed]:
    """`run_autoscaled` with a folder of the test's own, where Ray's logs stay too: `ray/session_latest/logs`."""
    return partial(run_autoscaled, folder=tmp_path / "autoscaled")
