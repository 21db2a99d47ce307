"""What the tests with several nodes share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from autoscaled import Observed, run_autoscaled
from namespaces import why_not


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where a command cannot have namespaces of its own."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def autoscaled(namespaces: None, tmp_path: Path) -> Callable[..., Observed]:
    """`run_autoscaled` with a folder of the test's own, where Ray's logs stay too: `ray/session_latest/logs`."""
    return partial(run_autoscaled, folder=tmp_path / "autoscaled")
