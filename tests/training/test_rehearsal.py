"""Short trainings side by side on the CPU, by which it is measured how many share a device."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygen.errors import RehearsalError
from raygen.packing import choose
from raygen.spec import TrainSpec
from raygen.training import rehearsal
from raygen.training.rehearsal import Wanted, measure

SPEC = TrainSpec.create("vae", {"data.source": "digits", "training.epochs": 2, "training.batch_size": 32})
"""So short that a rehearsal trains it again and again."""


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert [each for each in psutil.Process().children() if _is_of_a_rehearsal(each)] == []


def _is_of_a_rehearsal(process: psutil.Process) -> bool:
    try:
        return "raygen.training.rehearsal" in process.cmdline()
    except psutil.Error:
        return False


def wanted(at_once: int, **others: Any) -> Wanted:
    values = {"spec": SPEC, "device": "cpu", "threads": 1, "warm_up_s": 0.2, "span_s": 1.0}
    return Wanted(**{**values, "storage": None, "images": None, **others}, at_once=at_once)


@pytest.mark.slow
def test_trainings_at_once_are_measured_together() -> None:
    chosen = choose(lambda number: measure(wanted(number)), most=2, growth=1)
    assert chosen.at_once in (1, 2)
    assert "images per second: 1 at once" in chosen.why
    assert "2 at once" in chosen.why


def test_a_process_tells_what_it_holds(tmp_path: Path) -> None:
    found = measure(wanted(1))
    assert found.images_per_s > 0
    assert 50e6 < found.bytes_each < found.room_bytes < 1.1 * psutil.virtual_memory().total
    assert not list(tmp_path.glob("raygen*")), "nothing is left of it"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda:99"}, "."),
        ({"spec": SPEC.with_settings({"data.source": "/nowhere/at/all"})}, "/nowhere/at/all"),
    ],
)
def test_a_process_that_fails_tells_its_last_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RehearsalError, match=words):
        measure(wanted(2, **change))


def test_a_rehearsal_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SET_UP_TIMEOUT_S", 0.5)
    with pytest.raises(RehearsalError, match=r"^it took longer than"):
        measure(wanted(1, warm_up_s=600))


def test_whatever_ends_it_ends_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> list[str]:
        assert any(_is_of_a_rehearsal(each) for each in psutil.Process(os.getpid()).children())
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal, "_lines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(wanted(2))
