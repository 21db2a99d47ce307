import math
import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from raygen.training import rhythm


@pytest.fixture(autouse=True, scope="module")
def steady() -> Iterator[None]:
    """Syncs come after 1, 2, 20, 40, … steps, however fast this machine is, in what a module prepares too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rhythm, "SECONDS_BETWEEN_SYNCS", math.inf)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a training's checkpoint goes; there is none yet."""
    return tmp_path / "trial" / "checkpoint.safetensors"


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes from one that has torch but, unlike this one, no threads, which a fork would lose."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "raygen.training.loop"])
    return context
