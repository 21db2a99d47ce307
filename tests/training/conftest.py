import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest


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
