"""A training killed at several steps on the device ends as an undisturbed one does, bit for bit."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
from torch import Tensor

from raygen.training import checkpoint
from raygen.training.loop import fit
from tests.checkpoints import differing
from tests.gpu.trainings import GROUP, KINDS, STEPS, digits, killed_from, spec_of, train

KILLED_AT = (2, STEPS // 3, 2 * STEPS // 3)


@lru_cache
def undisturbed(kind: str, way: str) -> tuple[dict[int, dict[str, float]], dict[str, Tensor]]:
    """Metrics by epoch and all that the last checkpoint holds, of a training from beginning to end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint")
        return train(spec_of(kind, **{"training.compile": way}), path), checkpoint.read_weights(path)


# On a CPU `auto` runs the same steps.
@pytest.mark.parametrize("way", ["off", pytest.param("auto", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_mid_epoch_and_closed_after_one(kind: str, way: str, path: Path) -> None:
    spec = spec_of(kind, **{"training.compile": way})
    epochs: dict[int, dict[str, float]] = {}
    for step in KILLED_AT:
        epochs |= train(spec, path, on_pace=killed_from(step))
    running = fit(spec, digits(), path, group=GROUP)
    closed = next(running)
    epochs[closed.epoch] = closed.metrics
    running.close()
    epochs |= train(spec, path)

    expected_epochs, expected = undisturbed(kind, way)
    assert differing(checkpoint.read_weights(path), expected) == []
    assert epochs == expected_epochs


def test_the_same_training_twice_gives_the_same_bits(path: Path) -> None:
    """What the tests above compare does not differ from one time to the next."""
    train(spec_of("gan", **{"training.compile": "off"}), path)
    assert differing(checkpoint.read_weights(path), undisturbed("gan", "off")[1]) == []
