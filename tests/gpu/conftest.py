"""On a CPU, tests marked `cuda` are left out, and named at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygen.training import rhythm
from tests.gpu.trainings import ON_GPU, keep_steady

NEEDS_CUDA = "needs CUDA"
FOUND = "found"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not ON_GPU and item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason=NEEDS_CUDA))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == FOUND:
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {value}")
    for report in terminalreporter.stats.get("skipped", []):
        if NEEDS_CUDA in report.longrepr[2]:
            terminalreporter.write_line(f"{NEEDS_CUDA}: {report.nodeid}")


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs come at the same steps in every test, which leaves what it finds."""
    for name in ("SECONDS_BETWEEN_SYNCS", "STEPS_BETWEEN_SYNCS"):
        monkeypatch.setattr(rhythm, name, getattr(rhythm, name))
    keep_steady()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a training's checkpoint goes; there is none yet."""
    return tmp_path / "trial" / "checkpoint.safetensors"
