from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen import metrics
from raygen.errors import OutOfMemoryError, RunError
from raygen.plan import Plan
from raygen.runs import Run, Trial, TrialRecord, default_storage
from raygen.spec import TrainSpec, TuneSpec
from raygen.training.loop import Epoch, Pace

ROOT = Path(__file__).parents[1]
PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)


def make(storage: Path, model: str = "ae", *, search: bool = False, **chosen: Any) -> Run:
    spec = TuneSpec.search_over(model, model, chosen) if search else TrainSpec.create(model, chosen)
    direction = metrics.find(spec.evaluation.objective).direction
    return Run.create(storage, "tune" if search else "train", spec, PLAN, direction)


def add_trial(run: Run, *values: float, number: int = 1, state: str = "finished") -> Trial:
    """A trial with these values of the objective, one for each epoch."""
    trial = run.new_trial(number, {"optimizer.lr": number / 100}, run.spec().with_settings({"training.epochs": 5}))
    objective = metrics.find(run.objective)
    best: float | None = None
    for epoch, value in enumerate(values, start=1):
        is_best = best is None or objective.is_better(value, than=best)
        best = value if is_best else best
        trial.record_epoch(epoch_of(epoch, {run.objective: value}, is_best=is_best))
    trial.set_status(state)  # type: ignore[arg-type]
    return trial


def epoch_of(number: int, values: dict[str, float], *, is_best: bool = True) -> Epoch:
    return Epoch(epoch=number, step=10 * number, metrics=values, train_s=float(number), is_best=is_best)


# Making, naming and opening


def test_a_new_run_says_what_was_asked(storage: Path) -> None:
    made = make(storage, "vae", **{"optimizer.lr": 0.5, "seed": 7})
    run = Run.open(made.name, storage)
    assert run.spec() == made.spec() == TrainSpec.create("vae", {"optimizer.lr": 0.5, "seed": 7})
    assert (run.kind, run.objective, run.direction, run.plan) == ("train", "val_elbo", "max", PLAN)
    assert run.created_at.tzinfo is not None
    assert run.status().state == "waiting"
    assert run.trials() == []


def test_a_search_keeps_its_space(storage: Path) -> None:
    run = make(storage, "gan", search=True)
    spec = Run.open(run.name, storage).spec()
    assert isinstance(spec, TuneSpec)
    assert spec.search.space.parameters.keys() == {"optimizer.lr", "training.batch_size", "model.latent_dim"}


def test_names_tell_model_data_and_time(storage: Path) -> None:
    assert make(storage, "ae").name.startswith("ae-digits-20")
    assert make(storage, "vae", **{"data.source": "/somewhere/My Photos.NPY"}).name.startswith("vae-my-photos-20")


def test_two_runs_of_one_second_get_two_folders(storage: Path) -> None:
    names = [make(storage).name for _ in range(4)]
    assert len(set(names)) == 4
    assert {path.name for path in storage.iterdir()} == set(names)


def test_a_run_is_opened_by_name_beginning_or_path(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make(storage, "ae"), make(storage, "vae")
    monkeypatch.chdir(storage)
    for name in (run.name, "ae", run.name[:8], str(run.folder), f"./{run.name}"):
        assert Run.open(name, storage).folder == run.folder


def test_a_beginning_of_several_names_is_ambiguous(storage: Path) -> None:
    first, second = make(storage, "ae"), make(storage, "ae")
    with pytest.raises(RunError) as caught:
        Run.open("ae", storage)
    assert "'ae' begins the names of several runs: " in str(caught.value)
    assert first.name in str(caught.value)
    assert second.name in str(caught.value)
    # The second's name is the first's and more: a whole name is never ambiguous.
    assert Run.open(first.name, storage).folder == first.folder


def test_a_run_that_is_not_there(storage: Path) -> None:
    for name in ("nothing", "no/such/folder", str(storage)):
        with pytest.raises(RunError, match=f"there is no run '{name}' in {storage}; `raygen ls`"):
            Run.open(name, storage)


def test_a_chosen_name_is_the_runs_and_never_changed(storage: Path) -> None:
    spec = TrainSpec.create("ae", {})
    assert Run.create(storage, "train", spec, PLAN, "min", name="beta-sweep_2.1").folder == storage / "beta-sweep_2.1"
    with pytest.raises(RunError, match=r"there is a run 'beta-sweep_2\.1' .* already; choose another --name"):
        Run.create(storage, "train", spec, PLAN, "min", name="beta-sweep_2.1")
    for name in ("", "../up", "a/b", ".hidden", "-option", "two words", "ü", "x" * 101):
        with pytest.raises(RunError, match="use letters, digits"):
            Run.create(storage, "train", spec, PLAN, "min", name=name)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=f"cannot make a run folder in {tmp_path}/file.*--storage"):
        make(tmp_path / "file")


def test_storage_is_where_the_environment_says(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_storage() == storage
    monkeypatch.delenv("RAYGEN_STORAGE")
    assert default_storage().parts[-2:] == ("raygen", "runs")


@pytest.mark.parametrize("name", ["run.json", "state.json"])
@pytest.mark.parametrize("content", ["", "{", '{"kind": "tra'])
def test_a_damaged_file_is_named(name: str, content: str, storage: Path) -> None:
    run = make(storage)
    (run.folder / name).write_text(content)
    with pytest.raises(RunError, match=f"{run.folder}/{name} is damaged: "):
        Run.open(run.name, storage).status()


def test_a_missing_file_is_named(storage: Path) -> None:
    run = make(storage)
    (run.folder / "state.json").unlink()
    with pytest.raises(RunError, match=r"state\.json is missing: this is not a whole run folder"):
        run.status()


# States


def test_a_run_that_runs_is_locked_by_its_process(storage: Path) -> None:
    run = make(storage)
    with run.lock():
        run.set_status("running")
        assert state_seen_elsewhere(run) == "running"
        # Looking at a run does not take it from its process.
        assert state_seen_elsewhere(run) == "running"
    assert run.status().state == "interrupted"


def test_a_run_whose_process_was_killed_is_interrupted(storage: Path) -> None:
    run = make(storage)
    program = """
import os, signal, sys
from pathlib import Path
from raygen.runs import Run
run = Run(Path(sys.argv[1]))
lock = run.lock()
lock.acquire()
run.set_status("running")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(run.folder)], env=environment(), check=False)
    assert killed.returncode == -9
    status = run.status()
    assert (status.state, status.exit_code) == ("interrupted", 130)
    assert status.reason


@pytest.mark.parametrize("state", ["waiting", "finished", "failed", "interrupted"])
def test_other_states_are_as_they_were_written(state: str, storage: Path) -> None:
    run = make(storage)
    run.set_status(state, "because", exit_code=3)  # type: ignore[arg-type]
    status = run.status()
    assert (status.state, status.reason, status.exit_code) == (state, "because", 3)


def test_a_wish_to_stop_reaches_every_trial_until_it_is_forgotten(storage: Path) -> None:
    run = make(storage)
    first, second = add_trial(run, number=1), add_trial(run, number=2)
    first.ask_to_stop()
    assert (first.should_stop(), second.should_stop(), run.should_stop()) == (True, False, False)
    first.clear_stop()
    run.ask_to_stop()
    assert (first.should_stop(), second.should_stop(), run.should_stop()) == (True, True, True)
    run.clear_stop()
    assert (first.should_stop(), second.should_stop(), run.should_stop()) == (False, False, False)
    run.clear_stop()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def state_seen_elsewhere(run: Run) -> str:
    program = """
import sys
from pathlib import Path
from raygen.runs import Run
print(Run(Path(sys.argv[1])).status().state)
"""
    seen = subprocess.run(
        [sys.executable, "-c", program, str(run.folder)], env=environment(), check=True, capture_output=True, text=True
    )
    return seen.stdout.strip()


# Trials


def test_a_trial_knows_its_spec_and_parameters(storage: Path) -> None:
    run = make(storage, "vae")
    spec = run.spec().with_settings({"optimizer.lr": 0.25, "training.epochs": 9})
    run.new_trial(3, {"optimizer.lr": 0.25}, spec)
    trial = run.trial(3)
    assert trial.spec() == spec
    assert (trial.number, trial.parameters, trial.number_of_epochs) == (3, {"optimizer.lr": 0.25}, 9)
    assert trial.status().state == "waiting"
    assert [found.number for found in run.trials()] == [3]


def test_trials_are_listed_in_order(storage: Path) -> None:
    run = make(storage)
    for number in (2, 10, 1, 1000):
        add_trial(run, number=number)
    assert [trial.number for trial in run.trials()] == [1, 2, 10, 1000]


def test_epochs_are_as_they_were_recorded(storage: Path) -> None:
    trial = add_trial(make(storage), 0.5, 0.25)
    assert trial.epochs() == [
        {"epoch": 1, "step": 10, "metrics": {"val_mse": 0.5}, "train_s": 1.0, "is_best": True},
        {"epoch": 2, "step": 20, "metrics": {"val_mse": 0.25}, "train_s": 2.0, "is_best": True},
    ]


def test_an_epoch_that_runs_again_replaces_itself_and_what_came_after(storage: Path) -> None:
    trial = add_trial(make(storage), 0.5, 0.4, 0.3, 0.2)
    trial.record_epoch(epoch_of(2, {"val_mse": 0.45}))
    assert [(line["epoch"], line["metrics"]["val_mse"]) for line in trial.epochs()] == [(1, 0.5), (2, 0.45)]


@given(numbers=st.lists(st.integers(1, 6), max_size=12))
@settings(max_examples=30)
def test_epochs_are_always_one_after_another(numbers: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    trial = add_trial(make(tmp_path_factory.mktemp("runs")))
    expected: dict[int, float] = {}
    for call, number in enumerate(numbers):
        trial.record_epoch(epoch_of(number, {"val_mse": call / 7}))
        expected = {epoch: value for epoch, value in expected.items() if epoch < number} | {number: call / 7}
        assert {line["epoch"]: line["metrics"]["val_mse"] for line in trial.epochs()} == expected


def test_failures_are_handed_on(storage: Path) -> None:
    trial = add_trial(make(storage))
    assert trial.failure() is None
    trial.record_failure(OutOfMemoryError("too large"))
    failure = trial.failure()
    assert (str(failure), failure and failure.cause) == ("too large", "out of memory")
    trial.clear_failure()
    assert trial.failure() is None


def test_a_record_holds_the_best_epoch_and_the_last(storage: Path) -> None:
    run = make(storage)
    trial = add_trial(run, 0.5, 0.2, 0.3)
    trial.record_pace(Pace(epoch=4, step=38, steps=50, train_s=3.8, images_per_s=1234.5))
    trial.set_status("running")
    assert trial.record("val_mse") == TrialRecord(
        number=1,
        parameters={"optimizer.lr": 0.01},
        state="running",
        reason="",
        epoch=3,
        epochs=5,
        train_s=3.8,
        objective=0.2,
        epoch_objective=0.2,
        best_epoch=2,
        metrics={"val_mse": 0.2},
        images_per_s=1234.5,
        fraction=38 / 50,
    )


def test_a_record_of_a_trial_that_has_nothing_yet(storage: Path) -> None:
    record = add_trial(make(storage), state="waiting").record("val_mse")
    assert (record.objective, record.best_epoch, record.epoch, record.train_s, record.fraction) == (
        None,
        None,
        0,
        0,
        0,
    )


@pytest.mark.parametrize(("model", "order"), [("ae", [3, 1, 4, 2]), ("vae", [4, 1, 3, 2])])
def test_records_are_sorted_by_the_objective(model: str, order: list[int], storage: Path) -> None:
    """val_mse is best at its lowest, val_elbo at its highest; a trial without a value comes last."""
    run = make(storage, model)
    add_trial(run, -3.0, 0.5, -3.0, number=1)  # its best epoch counts, not its last
    add_trial(run, number=2)
    add_trial(run, -40.0, number=3)
    add_trial(run, 20.0, number=4)
    assert [record.number for record in run.records()] == order


def test_zero_is_a_value(storage: Path) -> None:
    run = make(storage)
    add_trial(run, 0.5, number=1)
    add_trial(run, 0.0, number=2)
    add_trial(run, number=3)
    assert [record.number for record in run.records()] == [2, 1, 3]


# Results


def test_best_places(storage: Path, tmp_path: Path) -> None:
    run = make(storage)
    with pytest.raises(RunError, match=f"{run.name} has no best checkpoint 1 \\(state: waiting\\)"):
        run.best()
    for kept in (11, 2):
        for place in range(1, kept + 1):
            (run.folder / "filled" / str(place)).mkdir(parents=True)
        run.replace_best(run.folder / "filled")
        assert [path.name for path in run.best_places()] == [str(place) for place in range(1, kept + 1)]
    assert run.best(2).name == "2"


def test_the_summary_is_what_the_folder_says(storage: Path) -> None:
    run = make(storage, "vae", **{"data.source": "mnist"})
    add_trial(run, 1.0, number=1)
    add_trial(run, 2.0, number=2, state="failed")
    run.set_status("finished")
    run.write_summary()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["run"] == run.name
    assert (summary["model"], summary["data"], summary["kind"], summary["state"]) == (
        "vae",
        "mnist",
        "train",
        "finished",
    )
    assert [(trial["number"], trial["objective"]) for trial in summary["trials"]] == [(2, 2.0), (1, 1.0)]
    assert summary["best"] == []
