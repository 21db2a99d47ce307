from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from raygen import curves_plot, training_curves
from raygen.errors import Cause, SpecError
from raygen.plotting import PANEL_INCHES, PIXELS_PER_INCH
from raygen.record.documents import TrialState
from raygen.record.view import View
from raygen.spec import Settings, TrainSpec, WarmStart
from tests.searches import add_trial, begin, create, record_epochs, search

ELBO, FRECHET = "val_elbo", "val_frechet"


def training(
    storage: Path,
    family: str,
    seed: int,
    values: Sequence[Mapping[str, float]],
    *,
    settings: Settings | None = None,
    cause: Cause = "error",
    epoch_s: float = 2.0,
    begun_as: str | None = None,
    begun_how: str = "",
) -> View:
    """A run whose epochs showed these values, each after ten steps."""
    storage.mkdir(exist_ok=True)
    spec = TrainSpec.create(family, {"training.batch_size": 50, "seed": seed, **(settings or {})})
    if begun_as is not None:
        spec = spec.warm_started(WarmStart(source=begun_as, configuration=begun_how, digest=begun_as))
    run = begin(create(storage, spec, name=f"{family}-{seed}-{len(list(storage.iterdir()))}"))
    state: TrialState = "stopped" if cause != "error" else "finished"
    record_epochs(run, run.new_trial(1, {}, spec), values, state=state, steps=10, epoch_s=epoch_s, cause=cause)
    return run.look()


def elbos(*values: float) -> list[dict[str, float]]:
    return [{ELBO: value} for value in values]


def test_runs_that_differ_by_their_seed_alone_are_one_group(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    runs = [
        training(storage, "vae", 0, elbos(-3, -2)),
        training(storage, "gan", 0, [{FRECHET: 9.0}]),
        training(storage, "vae", 7, elbos(-3, -1)),
    ]
    found = training_curves.groups(runs, "epoch")
    assert [(group.name, [curve.seed for curve in group.curves]) for group in found] == [("vae", [0, 7]), ("gan", [0])]
    wide = training(storage, "vae", 0, elbos(-1), settings={"model.hidden": 500})
    names = [group.name for group in training_curves.groups([*runs, wide], "epoch")]
    assert names == [runs[0].name, "gan", wide.name], "two configurations of one family are called by their runs"


def test_what_does_not_change_the_result_does_not_part_a_group(tmp_path: Path) -> None:
    devices = {"resources.cpus": 1, "evaluation.pictures": "none", "training.checkpoint_every_s": 5}
    plain = [training(tmp_path, "gan", seed, [{FRECHET: 9.0}], settings=devices if seed else {}) for seed in range(2)]
    begun = [training(tmp_path, "gan", seed, [{FRECHET: 7.0}], begun_as=f"ae-{seed}") for seed in range(3)]
    other = training(tmp_path, "gan", 0, [{FRECHET: 7.0}], begun_as="ae-0", begun_how="wider")
    runs = [*plain, *begun, other]
    assert [len(group.curves) for group in training_curves.groups(runs, "epoch")] == [2, 3, 1]
    timed = training_curves.groups(runs, "time")
    assert [len(group.curves) for group in timed] == [1, 1, 3, 1], "other devices take another time"


def test_a_search_stands_for_its_best_configuration_on_all_its_seeds(tmp_path: Path) -> None:
    run = search(tmp_path / "storage", '"model.latent_dim" = { int = [2, 64] }\n')
    add_trial(run, {"model.latent_dim": 20}, [-9.0, -8.0])
    best = add_trial(run, {"model.latent_dim": 30}, [-7.0, -5.0])
    fresh = run.new_trial(3, best.parameters, best.spec().with_settings({"seed": 5}), replicate_of=2)
    record_epochs(run, fresh, [{ELBO: -6.0}])
    [group] = training_curves.groups([run.look()], "epoch")
    assert [(curve.seed, len(curve.epochs)) for curve in group.curves] == [(0, 2), (5, 1)]


@pytest.mark.parametrize(("against", "unit"), [("epoch", 1), ("time", 2), ("images", 500)])
def test_costs_are_epochs_seconds_or_images(tmp_path: Path, against: training_curves.Against, unit: int) -> None:
    run = training(tmp_path, "vae", 0, elbos(-3, math.nan, -1))
    [group] = training_curves.groups([run], "epoch")
    assert group.of(ELBO, against) == [([unit, 3 * unit], [-3, -1])]
    assert group.of(FRECHET, against) == []


def test_a_table_tells_how_good_how_fast_and_how_stable(tmp_path: Path) -> None:
    collapsed = [{FRECHET: 40.0}, {FRECHET: 30.0}]
    runs = [
        training(tmp_path, "gan", 0, [{FRECHET: value} for value in (20.0, 10.0, 8.0, 9.0)]),
        training(tmp_path, "gan", 1, collapsed, cause="mode collapse"),
        training(tmp_path, "gan", 2, [{FRECHET: value} for value in (24.0, 14.0, 12.0, 10.0)]),
        training(tmp_path, "aegan", 0, [{FRECHET: value} for value in (12.0, 8.0, 6.0, 6.0)]),
    ]
    found = training_curves.groups(runs, "epoch")
    level = training_curves.level(found, FRECHET)
    assert level == 10.0, "the median of 8, 30 and 10, which is worse than 6"
    best, gan = training_curves.stability(found, FRECHET, "epoch", level)
    assert (best.name, best.seeds, best.best, best.spread, best.reached, best.cost) == ("aegan", 1, 6.0, None, 1, 2.0)
    assert best.average == pytest.approx((10 + 7 + 6) / 3, abs=1e-2), "the area under 12, 8, 6, 6 over three epochs"
    assert (gan.name, gan.seeds, gan.best, gan.reached, gan.cost, gan.collapsed) == ("gan", 3, 16.0, 2, 3.0, 1)
    assert gan.spread == pytest.approx(math.sqrt((8**2 + 14**2 + 6**2) / 2))


def test_more_is_better_for_metrics_of_that_direction(tmp_path: Path) -> None:
    slow = training(tmp_path, "vae", 0, elbos(-9, -5))
    quick = training(tmp_path, "vae", 0, elbos(-4, -6), settings={"model.hidden": 500})
    found = training_curves.groups([slow, quick], "epoch")
    assert training_curves.level(found, ELBO) == -5
    rows = training_curves.stability(found, ELBO, "epoch", -5)
    assert [(row.name, row.best, row.cost) for row in rows] == [(quick.name, -4, 1), (slow.name, -5, 2)]


def test_a_training_that_ended_early_keeps_its_last_value_in_the_band(tmp_path: Path) -> None:
    runs = [training(tmp_path, "vae", 0, elbos(-2, -2)), training(tmp_path, "vae", 1, elbos(-4, -4, -4, -8))]
    [group] = training_curves.groups(runs, "epoch")
    costs, mean, spread = group.band(ELBO, "epoch")
    assert (costs[0], costs[-1]) == (1, 4)
    assert (mean[0], mean[-1]) == (-3, -5)
    assert (spread[0], spread[-1]) == pytest.approx((math.sqrt(2), math.sqrt(18)))


def test_a_metric_that_no_training_wrote_down_is_refused(tmp_path: Path) -> None:
    found = training_curves.groups([training(tmp_path, "vae", 0, [{ELBO: -1.0, "loss": 2.0}])], "epoch")
    assert training_curves.known_metrics(found, [FRECHET, ELBO]) == [ELBO]
    with pytest.raises(SpecError, match="no training wrote frechet down, epoch by epoch; there is: elbo"):
        training_curves.known_metrics(found, [FRECHET])


def test_the_picture_has_a_panel_for_each_metric(tmp_path: Path) -> None:
    both = [{ELBO: -3.0, FRECHET: 9.0}, {ELBO: -2.0, FRECHET: 7.0}]
    runs = [training(tmp_path, "vae", seed, both) for seed in range(2)]
    found = training_curves.groups([*runs, training(tmp_path, "gan", 0, [{FRECHET: 8.0}])], "epoch")
    path = tmp_path / "curves.png"
    curves_plot.save(found, [ELBO, FRECHET], "time", path)
    with Image.open(path) as image:
        assert round(image.width / PIXELS_PER_INCH / PANEL_INCHES[0]) == 2
        assert len(image.convert("RGB").getcolors(image.width * image.height) or []) > 10
