"""Steps that are recorded and replayed do what they do as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import differing, relative_difference, weights
from tests.gpu.conftest import FOUND
from tests.gpu.trainings import KINDS, killed_from, spec_of, train

LARGEST_DIFFERENCE = 1e-4
"""Of weights after 40 steps; a GAN's rounding errors grow with every step."""


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_equal_plain_ones(
    kind: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = {}
    for way in ("off", "auto"):
        told: list[str] = []
        # The checkpoint of the sync before holds step 40: by then every phase has been recorded and replayed.
        spec = spec_of(kind, **{"training.compile": way})
        train(spec, tmp_path / way, on_pace=killed_from(60), on_set_up=told.append)
        found[way] = weights(tmp_path / way)
    assert "recorded and replayed" in told[0]
    assert len(told) == 1, "it was refused"
    difference = relative_difference(found["off"], found["auto"])
    same = "the same bit for bit" if not differing(found["off"], found["auto"]) else f"{difference:.1e} of the weights"
    record_property(FOUND, f"recorded against plain: {same}")
    assert difference <= LARGEST_DIFFERENCE
