from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from raygen import search_insight
from raygen.errors import RunError
from raygen.record.run import Run
from raygen.search_insight import SearchInsight
from raygen.spec import TrainSpec
from tests.searches import add_trial, create, run_of, search

THREE = """
"optimizer.lr" = { loguniform = [1e-4, 1e-2] }
"training.batch_size" = { choice = [32, 64, 128] }
"model.hidden" = { choice = [[16], [32, 16]] }
"""


def configuration(number: int, **chosen: Any) -> dict[str, Any]:
    """Parameters that go through their values at different paces."""
    varied = {
        "optimizer.lr": 1e-4 * 100 ** (number * 7 % 16 / 15),
        "training.batch_size": (32, 64, 128)[number % 3],
        "model.hidden": ([16], [32, 16])[number // 2 % 2],
    }
    return {**varied, **chosen}


def by_name(insight: SearchInsight) -> dict[str, search_insight.ParameterInsight]:
    return {parameter.name: parameter for parameter in insight.parameters}


def test_the_parameter_that_decides_comes_first(storage: Path) -> None:
    run = search(storage, THREE)
    for number in range(24):
        parameters = configuration(number)
        add_trial(run, parameters, [-200.0, -100 - 3e3 * parameters["optimizer.lr"]])
    insight = search_insight.of_run(run.look())
    assert insight.parameters[0].name == "optimizer.lr"
    assert insight.parameters[0].importance > 0.9
    assert sum(parameter.importance for parameter in insight.parameters) == pytest.approx(1)
    assert (insight.trials, insight.best_trials, insight.left_out) == (24, 6, 0)
    low, high = insight.parameters[0].best
    assert low == pytest.approx(1e-4)
    assert high < 5e-4


def test_one_trial_that_went_very_wrong_does_not_hide_the_others(storage: Path) -> None:
    run = search(storage, THREE)
    add_trial(run, configuration(0, **{"training.batch_size": 128, "optimizer.lr": 1e-3}), [-1e9])
    for number in range(24):
        parameters = configuration(number)
        add_trial(run, parameters, [-100 - 3e3 * parameters["optimizer.lr"]])
    assert by_name(search_insight.of_run(run.look()))["optimizer.lr"].importance > 0.7


def test_a_configuration_that_diverges_is_the_worst_and_an_accident_tells_nothing(storage: Path) -> None:
    run = search(storage, THREE)
    for number in range(12):
        parameters = configuration(number)
        if parameters["training.batch_size"] == 32:
            add_trial(run, parameters, [], state="failed", cause="non-finite loss")
        else:
            add_trial(run, parameters, [-100.0 - number % 2])
    add_trial(run, configuration(0), [], state="failed", cause="out of memory")
    add_trial(run, configuration(0), [], state="stopped")
    add_trial(run, configuration(0), [-1.0], state="running")
    insight = search_insight.of_run(run.look())
    assert insight.parameters[0].name == "training.batch_size"
    assert (insight.trials, insight.left_out) == (12, 2)
    assert insight.parameters[0].best == (64, 128)


def test_choices_of_the_best_stand_in_the_space_s_order(storage: Path) -> None:
    run = search(storage, THREE)
    for number in range(12):
        parameters = configuration(number)
        add_trial(run, parameters, [-100.0 - 50 * (parameters["model.hidden"] == [32, 16]) - number / 100])
    found = by_name(search_insight.of_run(run.look()))
    assert found["model.hidden"].best == ((16,),)
    assert found["model.hidden"].as_json()["best_values"] == [(16,)]
    assert list(found["training.batch_size"].best) == sorted(found["training.batch_size"].best)
    assert found["optimizer.lr"].as_json().keys() == {"parameter", "importance", "best_range"}


def test_replicates_are_not_counted_twice(storage: Path) -> None:
    run = search(storage, THREE)
    trials = [add_trial(run, configuration(number), [-100.0 - number]) for number in range(6)]
    run.new_trial(7, trials[0].parameters, trials[0].spec(), replicate_of=1)
    run.set_trial_state(7, "finished")
    assert search_insight.of_run(run.look()).trials == 6


def test_a_parameter_with_one_value_has_no_importance(storage: Path) -> None:
    run = search(storage, THREE + '"optimizer.schedule" = { choice = ["cosine"] }\n')
    for number in range(6):
        add_trial(run, configuration(number, **{"optimizer.schedule": "cosine"}), [-100.0 - number])
    found = by_name(search_insight.of_run(run.look()))["optimizer.schedule"]
    assert (found.importance, found.best) == (0, ("cosine",))


def test_a_single_parameter_has_all_of_it(storage: Path) -> None:
    run = search(storage, '"model.latent_dim" = { int = [2, 9] }\n')
    for number in range(5):
        add_trial(run, {"model.latent_dim": 2 + number}, [float(number)])
    [found] = search_insight.of_run(run.look()).parameters
    assert (found.importance, found.best) == (1, (5, 6))


def test_too_few_trials_are_refused_with_what_adds_some(storage: Path) -> None:
    run = search(storage, THREE)
    for number in range(3):
        add_trial(run, configuration(number), [-100.0 - number])
    add_trial(run, configuration(3), [-1.0], state="running")
    with pytest.raises(RunError, match="takes 4 ended trials or more, and search has 3; `raygen tune --extend search"):
        search_insight.of_run(run.look())


@pytest.mark.parametrize("values", [[-100.0], []], ids=["of one value", "all diverged"])
def test_trials_that_are_all_alike_have_no_reason(storage: Path, values: list[float]) -> None:
    run = search(storage, THREE)
    for number in range(6):
        add_trial(run, configuration(number), values, state="failed", cause="non-finite loss")
    with pytest.raises(RunError, match="are all alike in val_elbo"):
        search_insight.of_run(run.look())


def test_a_training_is_no_search(storage: Path) -> None:
    run = create(storage, TrainSpec.create("ae", {}), name="one")
    with pytest.raises(RunError, match="one is one training"):
        search_insight.of_run(run.look())


# The command


@pytest.fixture
def shown(storage: Path) -> Run:
    run = search(storage, THREE)
    for number in range(8):
        parameters = configuration(number)
        add_trial(run, parameters, [-100 - 3e3 * parameters["optimizer.lr"]])
    run.set_status("finished")
    return run_of(run)


def test_show_why_prints_a_row_for_each_parameter(shown: Run) -> None:
    result = CliRunner().invoke(app, ["show", "search", "--why"])
    assert result.exit_code == 0, result.output
    [row] = [line for line in result.stdout.splitlines() if line.startswith("optimizer.lr")]
    assert "0.0001 … 0.01" in row
    assert "[16], [32, 16]" in result.stdout
    assert "part of the variance of 8 trials' ranks by val_elbo; from so few they are rough" in result.stderr


def test_show_why_is_json_for_programs(shown: Run, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", "search", "--why", "--plot", str(tmp_path / "a.png"), "-o", "json"])
    assert result.exit_code == 0, result.output
    why = json.loads(result.stdout)["why"]
    assert why["trials"] == 8
    assert {parameter["parameter"] for parameter in why["parameters"]} == set(configuration(0))
    assert (tmp_path / "a.png").is_file()
    assert "why" not in json.loads(CliRunner().invoke(app, ["show", "search", "-o", "json"]).stdout)


def test_a_picture_that_cannot_be_written_is_refused_first(shown: Run, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", "search", "--plot", str(tmp_path / "no" / "a.png")])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "make the folder" in result.stderr
