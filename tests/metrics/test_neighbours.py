"""Precision, recall, density and coverage against the package of their authors, KID and FID against torch-fidelity."""

from __future__ import annotations

from types import ModuleType

import prdc
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from raygen.metrics import _neighbours, coverage, density, frechet, kid, precision, recall

METRICS = [precision, recall, density, coverage]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__.rpartition(".")[2])


def clouds(real: int, made: int, shift: float, scale: float, width: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    first = torch.randn(real, width, generator=random).double()
    return first, shift + scale * torch.randn(made, width, generator=random).double()


@every_metric
@pytest.mark.parametrize(
    ("counts", "shift", "scale"),
    [((300, 300), 0.0, 1.0), ((700, 300), 0.3, 0.8), ((300, 700), 0.0, 1.3), ((300, 300), 5.0, 1.0)],
)
def test_they_are_what_their_authors_compute(
    metric: ModuleType, counts: tuple[int, int], shift: float, scale: float, capsys: pytest.CaptureFixture[str]
) -> None:
    real, made = clouds(*counts, shift, scale)
    name = metric.__name__.rpartition(".")[2]
    expected = prdc.compute_prdc(real.numpy(), made.numpy(), nearest_k=metric.NEIGHBOURS)[name]
    assert metric.compare(real, made) == pytest.approx(float(expected), abs=1e-9)


def test_the_neighbours_are_as_many_as_the_papers_say() -> None:
    assert [metric.NEIGHBOURS for metric in METRICS] == [3, 3, 5, 5]


@every_metric
def test_blocks_change_nothing(metric: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = clouds(200, 150, 0.2, 0.9)
    whole = metric.compare(real, made)
    monkeypatch.setattr(_neighbours, "CHUNK_ROWS", 7)
    assert metric.compare(real, made) == pytest.approx(whole, abs=1e-12)


def test_a_generator_that_loses_a_mode_loses_coverage_and_recall_but_not_precision() -> None:
    first, second = clouds(300, 300, 30.0, 1.0)
    real, made = torch.cat([first, second]), first + 0.1 * clouds(300, 1, 0.0, 1.0)[0].flip(0)
    assert coverage.compare(real, made) < 0.6
    assert recall.compare(real, made) < 0.6
    assert precision.compare(real, made) > 0.9


@every_metric
def test_few_points_are_no_error(metric: ModuleType) -> None:
    real, made = clouds(2, 2, 0.0, 1.0)
    assert 0 <= metric.compare(real, made) <= 1


@every_metric
def test_a_diverged_model_is_the_worst_of_all(metric: ModuleType) -> None:
    real, made = clouds(50, 50, 0.0, 1.0)
    assert metric.compare(real, torch.full_like(made, torch.nan)) == 0


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.2, 1.1), (2.0, 0.5)])
def test_kid_is_torch_fidelity_s(shift: float, scale: float) -> None:
    """On one subset that is the whole set both estimates are the same."""
    real, made = clouds(600, 600, shift, scale)
    theirs = kid_features_to_metric(real, made, kid_subsets=1, kid_subset_size=600, verbose=False)
    assert kid.compare(real, made) == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-9, abs=1e-12)


def test_kid_is_unbiased() -> None:
    """Over many draws from one distribution it averages to 0, and some are below."""
    found = []
    for seed in range(200):
        random = torch.Generator().manual_seed(seed)
        found.append(kid.compare(*(torch.randn(20, 4, generator=random).double() for _ in range(2))))
    values = torch.tensor(found)
    assert values.min() < 0
    assert values.mean().abs() < 3 * values.std() / len(found) ** 0.5


def test_kid_of_sets_of_different_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = clouds(50, 31, 0.5, 1.0, width=3)

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [sum(kernel(x, y) for x in part for y in part if x is not y) for part in (list(real), list(made))]
    across = sum(kernel(x, y) for x in real for y in made)
    expected = within[0] / (50 * 49) + within[1] / (31 * 30) - 2 * across / (50 * 31)
    assert kid.compare(real, made) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(kid, "CHUNK_ROWS", 7)
    assert kid.compare(real, made) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.2, 1.1), (2.0, 0.5)])
def test_frechet_is_torch_fidelity_s(shift: float, scale: float) -> None:
    real, made = clouds(600, 400, shift, scale)
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (real, made)), verbose=False)
    assert frechet.compare(real, made) == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-6)
