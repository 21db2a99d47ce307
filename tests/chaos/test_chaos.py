"""A short chaos of each kind, always the same; longer ones are `python -m tests.chaos.fake` and `… .nodes`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import postgres
from tests.chaos.chaos import make_chaos

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(postgres.find() is None, reason="PostgreSQL is not installed"),
]


def test_jobs_outlive_chaos_over_a_fake_cluster(tmp_path: Path) -> None:
    from tests.chaos.fake import FakeChaos

    counts = make_chaos(FakeChaos, tmp_path, seed=1, minutes=1 / 3, jobs=15)
    assert counts.total() > 15


def test_jobs_outlive_chaos_over_ray_nodes(tmp_path: Path) -> None:
    from tests.chaos.nodes import NodesChaos

    make_chaos(NodesChaos, tmp_path, seed=1, minutes=1, jobs=4)
