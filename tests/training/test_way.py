"""In which way steps run follows from the device and the planned steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raygen.spec import TrainSpec
from raygen.training import way
from raygen.training.distributed import ALONE, Group

GPU = Group(device=torch.device("cuda"))
MANY = way.COMPILE_FROM_STEPS
R1 = {"model.r1": 1.0}


@pytest.mark.parametrize(
    ("group", "settings", "steps", "records", "compiles"),
    [
        (ALONE, {}, MANY, False, False),
        (ALONE, {"training.compile": "on"}, 10, False, True),
        (ALONE, {"training.compile": "off"}, MANY, False, False),
        (GPU, {}, way.RECORD_FROM_STEPS - 1, False, False),
        (GPU, {}, way.RECORD_FROM_STEPS, True, False),
        (GPU, {}, MANY - 1, True, False),
        (GPU, {}, MANY, True, True),
        (GPU, R1, MANY, True, False),
        (GPU, {"training.compile": "on"}, 10, True, True),
        (GPU, {"training.compile": "off"}, MANY, False, False),
        (Group(world_size=2, device=GPU.device), {}, MANY, False, True),
        (Group(world_size=2, device=GPU.device), {"training.compile": "on"}, 10, False, True),
    ],
)
def test_what_is_decided(
    group: Group,
    settings: dict[str, Any],
    steps: int,
    records: bool,
    compiles: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(way, "find_spec", lambda name: object())
    monkeypatch.setattr(way.shutil, "which", lambda name: f"/bin/{name}")
    found = way.chosen(TrainSpec.create("gan", settings), group, steps)
    assert (found.records, found.compiles) == (records, compiles)
    assert found.words


def test_nothing_is_compiled_by_itself_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way.shutil, "which", lambda name: None)
    assert not way.chosen(TrainSpec.create("gan", {}), GPU, MANY).compiles
    assert way.chosen(TrainSpec.create("gan", {"training.compile": "on"}), GPU, MANY).compiles, "who asks is told why"
