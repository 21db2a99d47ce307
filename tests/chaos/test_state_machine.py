"""A queue holds through whatever happens to it, in any order, as far as a few hundred steps can tell."""

from __future__ import annotations

from tests.chaos.state_machine import tell_stories

STEPS, SEED = 250, 12


def test_a_queue_holds_whatever_happens_to_it() -> None:
    print(f"python -m tests.chaos.state_machine --steps {STEPS} --seed {SEED}")
    assert tell_stories(STEPS, SEED) >= STEPS
