from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from raygen import proposals
from raygen.proposals import POLICIES, Proposals
from raygen.record.view import TrialRecord
from raygen.spec import TuneSpec

LR, BATCH, LATENT = "optimizer.lr", "training.batch_size", "model.latent_dim"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(vary: dict[str, str], **options: Any) -> TuneSpec:
    return TuneSpec.search_over(None, "vae", {f"search.{key}": value for key, value in options.items()}, vary=vary)


def first(spec: TuneSpec) -> dict[str, Any]:
    offered = Proposals(spec)
    return offered.parameters(offered.ask())


def ended(parameters: dict[str, Any], number: int, objective: float | None) -> TrialRecord:
    return TrialRecord(
        number=number, parameters=parameters, state="finished", reason="", epoch=1, epochs=1, train_s=1.0,
        epoch_objective=objective,
    )  # fmt: skip


def test_the_first_trial_is_the_defaults() -> None:
    spec = TuneSpec.search_over("vae", "vae", {})
    assert first(spec) == {LR: 1e-3, BATCH: 128, LATENT: 20}
    assert spec.trial_spec(first(spec)).model_dump() == spec.model_dump(exclude={"search"})


def test_they_are_moved_inside_the_bounds() -> None:
    vary = {LR: "2e-3..1e-2", BATCH: "32,100", LATENT: "2..8", "optimizer.clip_norm": "1.0..100.0"}
    assert first(search(vary)) == {LR: 2e-3, BATCH: 100, LATENT: 8, "optimizer.clip_norm": 10.0}
    assert first(search({"model.hidden": "[512,256],[800]"})) == {"model.hidden": [512, 256]}
    assert first(search({"model.hidden": "[512,256],[400]"})) == {"model.hidden": [400]}


def test_what_was_set_beside_the_space_is_a_default_too() -> None:
    spec = TuneSpec.search_over(None, "vae", {"model.beta": 2.0}, vary={LATENT: "2..64"})
    assert spec.trial_spec(first(spec)).model.model_dump()["beta"] == 2.0


def test_or_not_if_they_are_not_wanted() -> None:
    seeds = [search({LR: "1e-4..1e-2"}, defaults_first=False).model_copy(update={"seed": seed}) for seed in range(5)]
    assert all(first(spec) != {LR: 1e-3} for spec in seeds)


@pytest.mark.parametrize("sampler", ["optuna", "random"])
def test_a_search_that_goes_on_does_not_try_again_what_it_tried(sampler: str) -> None:
    spec = TuneSpec.search_over("vae", "vae", {"search.sampler": sampler})
    before = Proposals(spec)
    tried = [before.parameters(before.ask()) for _ in range(4)]
    records = [ended(parameters, number, -float(number)) for number, parameters in enumerate(tried[:2], start=1)]
    after = Proposals(spec, records, begun=4)
    for parameters in tried[2:]:
        assert after.parameters(after.ask_again(parameters)) == parameters
    for _ in range(4):
        tried.append(after.parameters(after.ask()))
    assert len({json.dumps(parameters) for parameters in tried}) == 8


def comes_to(lr: float) -> float | None:
    """Better the higher the learning rate, until it diverges above 3e-3."""
    return None if lr > 3e-3 else math.log(lr)


def diverged_if_told(seed: int) -> int:
    """Of 40 trials, those that diverged."""
    offered, values = Proposals(search({LR: "1e-5..1.0"}).model_copy(update={"seed": seed})), []
    for _ in range(40):
        asked = offered.ask()
        values.append(comes_to(offered.parameters(asked)[LR]))
        offered.tell(asked, values[-1])
    return values.count(None)


def diverged_if_not_told(seed: int) -> int:
    """The same for the same sampler, which hears of finite values alone."""
    study = optuna.create_study(direction="maximize", sampler=POLICIES["optuna"].sampler(seed))
    values = []
    for _ in range(40):
        asked = study.ask({LR: FloatDistribution(1e-5, 1.0, log=True)})
        values.append(comes_to(asked.params[LR]))
        state = TrialState.FAIL if values[-1] is None else TrialState.COMPLETE
        study.tell(asked, values[-1], state=state)
    return values.count(None)


def test_a_trial_that_diverged_counts_as_bad() -> None:
    told = sum(diverged_if_told(seed) for seed in range(3))
    not_told = sum(diverged_if_not_told(seed) for seed in range(3))
    assert told < 0.75 * not_told


def test_a_grid_is_all_of_it_and_begins_with_the_defaults() -> None:
    spec = search({LATENT: "8,16,32", BATCH: "64,128"}, sampler="grid")
    offered = Proposals(spec)
    points = [offered.parameters(offered.ask()) for _ in range(spec.search.trials)]
    assert points[0] == {LATENT: 16, BATCH: 128}
    assert {(point[LATENT], point[BATCH]) for point in points} == {(z, b) for z in (8, 16, 32) for b in (64, 128)}
    assert spec.search.trials == len(points) == 6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), low=st.floats(1e-6, 1e-2), factor=st.floats(1.01, 1e4), dims=st.integers(1, 500))
def test_every_proposal_lies_inside_the_space(seed: int, low: float, factor: float, dims: int) -> None:
    high = min(low * factor, 1.0)
    vary = {LR: f"{low!r}..{high!r}", LATENT: f"{dims}..{dims + 50}", BATCH: "32,64,128"}
    offered = Proposals(search(vary).model_copy(update={"seed": seed}))
    for number in range(6):
        asked = offered.ask()
        found = offered.parameters(asked)
        assert low <= found[LR] <= high
        assert dims <= found[LATENT] <= dims + 50
        assert found[BATCH] in (32, 64, 128)
        offered.tell(asked, float(number))


def test_defaults_of_a_quantised_range_lie_on_a_step() -> None:
    spec = search({LR: "1e-4..1e-2"})
    space = spec.search.space.model_validate(
        {
            **spec.search.space.model_dump(),
            "parameters": {"optimizer.beta1": {"quantised": [0.5, 0.95], "step": 0.2}},
        }
    )
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"space": space})})
    assert proposals.defaults(spec) == {"optimizer.beta1": pytest.approx(0.9)}
