"""What all tests share: folders of their own, and one decoded data set."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from raygen.data import Dataset

# Read when torch is first imported, here and in every process that a test starts. Tests share two cores with each
# other's processes, where two threads each that wait for one another are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
# Some virtual machines announce matrix units (AMX) that they do not let anybody use: bf16 ends there with SIGILL.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would all commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("raygen", deadline=None)
hypothesis.settings.load_profile("raygen")


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the person's own folders, nor run on the person's cluster."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAYGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        environment.setenv("RAYGEN_STORAGE", str(tmp_path_factory.mktemp("storage")))
        environment.setenv("RAYGEN_STATE", str(tmp_path_factory.mktemp("state")))
        environment.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for runs, of the test's own."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("RAYGEN_STORAGE", str(folder))
    return folder


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The embedded data set: 1,437 images to train on, 180 to validate and 180 to test, of 1×8×8."""
    from raygen import data

    return data.load(data.DataOptions())
