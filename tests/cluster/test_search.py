"""Searches that can be trusted: what has gone wrong is stopped, what has ended goes on, winners are run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygen.queue.job import JobState
from raygen.record.run import WEIGHTS
from tests.cluster.weights import training_writes
from tests.typed_commands import Queue, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_search_stops_collapsed_trials_by_name_and_no_healthy_one(queue: Queue, tmp_path: Path) -> None:
    """A discriminator at a thousandth of the generator's rate lets it collapse."""
    space = tmp_path / "collapsing.toml"
    space.write_text(
        'model = "gan"\nobjective = "val_frechet"\ndirection = "min"\n'
        '[parameters]\n"model.discriminator_lr_scale" = { choice = [1.0, 1e-3] }\n'
    )
    fixed = "--set optimizer.lr=2e-3 --set training.batch_size=32 --set model.width=8"
    options = f"{fixed} --trials 6 --epochs 40 --search random --scheduler fifo --name collapsing"
    done = queue.raygen("tune", "gan", "--space", str(space), *options.split())
    assert done.returncode == 0, done.stderr
    run = queue.run("collapsing")
    by_scale = {scale: [r for r in run.records() if set(r.parameters.values()) == {scale}] for scale in (1.0, 1e-3)}
    assert all(by_scale.values())
    for record in by_scale[1.0]:
        assert (record.state, record.epoch) == ("finished", 40)
    for record in by_scale[1e-3]:
        assert record.state == "stopped"
        assert record.reason.startswith("mode collapse: val_coverage is 0")
        assert record.epoch < 20, "stopped after half of its budget"
        assert record.objective is not None
        checkpoint = run.look().trial(record.number).progress.checkpoint
        assert checkpoint is not None
        assert run.storage.entry(checkpoint) is not None, "its best checkpoint is kept"
        assert f"trial {record.number} stopped: mode collapse" in queue.raygen("logs", "collapsing").stdout
    assert "stopped: mode collapse" in done.stdout
    assert any("mode collapse" in trial["reason"] for trial in run.summary()["trials"])


def test_a_training_that_has_gone_wrong_fails_with_the_reason_and_is_not_retried(queue: Queue) -> None:
    options = "--set model.beta=100 --batch-size 64 --epochs 30 --name latentless"
    done = queue.raygen("train", "vae", *options.split())
    assert done.returncode == 1
    assert "posterior collapse: 0 latent units are active" in done.stderr
    assert "raygen retry" not in done.stdout + done.stderr, "it would end the same"
    assert (queue.job("latentless").state, queue.job("latentless").attempt) == (JobState.FAILED, 1)
    assert queue.run("latentless").best_file(WEIGHTS)


def test_an_extended_search_keeps_what_it_has_and_goes_on(queue: Queue) -> None:
    common = ["--set", "model.hidden=32", "--name", "extended", "--quiet"]
    assert queue.raygen("tune", "vae", "--trials", "4", "--epochs", "3", *common).returncode == 0
    run = queue.run("extended")
    before = training_writes(run, range(1, 5))
    best = run.records()[0].objective

    more = queue.raygen("tune", "--extend", "extended", "--trials", "8")
    assert more.returncode == 0, more.stderr
    records = queue.run("extended").records()
    assert sorted(record.number for record in records) == list(range(1, 9))
    assert training_writes(run, before) == before, "a finished trial was started again"
    assert len({json.dumps(record.parameters) for record in records}) == 8
    assert records[0].objective is not None
    assert best is not None
    assert records[0].objective >= best
    states = [event.to_state for event in queue.store.events(queue.job("extended"))]
    assert states.count(JobState.QUEUED) == states.count(JobState.SUCCEEDED) == 2

    finished = {record.number for record in records if record.state == "finished"}
    longer = queue.raygen("tune", "--extend", "extended", "--epochs", "5")
    assert longer.returncode == 0, longer.stderr
    for record in queue.run("extended").records():
        assert [epoch.epoch for epoch in run.look().trial(record.number).epochs] == list(range(1, record.epoch + 1))
        if record.state == "finished":
            assert (record.epoch, record.epochs) == (5, 5)
    assert finished, "of eight trials at least one runs to its end"
    assert "name more of them with --trials" in queue.raygen("tune", "--extend", "extended", "--trials", "8").stderr


def test_the_best_configurations_are_run_again_on_further_seeds(queue: Queue) -> None:
    options = "--trials 3 --epochs 2 --replicates 2 --set search.keep_best=2 --name repeated"  # two fresh seeds each
    done = queue.raygen("tune", "ae", *options.split())
    assert done.returncode == 0, done.stderr
    run = queue.run("repeated")
    replicates = [trial for trial in run.look().trials if trial.replicate_of is not None]
    assert len(replicates) == 4
    assert [trial.state for trial in replicates] == ["finished"] * 4
    first, second, *_ = run.records()
    assert {trial.replicate_of for trial in replicates} == {first.number, second.number}
    assert first.mean is not None
    assert second.mean is not None
    assert first.mean <= second.mean
    assert " ± " in done.stdout
    assert f"test_mse {run.summary()['test']['best']['value']:.5g}" in done.stderr
    assert "over 2 fresh seeds) on 180 test images; " in done.stderr
    assert "the defaults" in done.stderr


@pytest.mark.parametrize("scheduler", ["asha", "median", "fifo"])
def test_a_search_ends_well_whatever_its_trials_come_to(scheduler: str, queue: Queue, tmp_path: Path) -> None:
    """One trial diverges at once, one collapses, one is cancelled and goes on, with each way of stopping early."""
    space = tmp_path / "mixed.toml"
    space.write_text(
        'model = "gan"\nobjective = "val_frechet"\ndirection = "min"\n'
        '[parameters]\n"model.discriminator_lr_scale" = { choice = [1.0, 1e-3, 1e38] }\n'
    )
    name = f"mixed-{scheduler}"
    health = "--set health.grace_steps=100 --set health.patience_epochs=3"
    fixed = "--set training.batch_size=32 --set model.width=8 --set search.grace_fraction=0.9 --cpus-per-trial 2"
    options = f"{fixed} {health} --search grid --scheduler {scheduler} --epochs 16 --name {name}"
    assert queue.raygen("tune", "gan", "--space", str(space), *options.split(), "--detach").returncode == 0
    queue.wait_for(name, JobState.RUNNING)
    run = queue.run(name)
    wait_until(lambda: any(len(trial.epochs) >= 2 for trial in run.look().trials), "two epochs of the first trial")
    assert queue.raygen("cancel", name).returncode == 0
    queue.wait_for(name, JobState.CANCELLED)
    cancelled = run.look().trials[0]
    assert cancelled.state == "interrupted"
    done_before = len(cancelled.epochs)

    done = queue.raygen("tune", "--resume", name)
    assert done.returncode == 0, done.stderr
    healthy, collapsed, diverged = (
        next(record for record in run.records() if set(record.parameters.values()) == {scale})
        for scale in (1.0, 1e-3, 1e38)
    )
    assert healthy.number == 1, "the defaults come first"
    assert (healthy.state, healthy.epoch) == ("finished", 16)
    assert done_before < 16
    assert (collapsed.state, collapsed.reason.partition(":")[0]) == ("stopped", "mode collapse")
    assert collapsed.objective is not None
    assert (diverged.state, diverged.epoch, diverged.objective) == ("failed", 0, None)
    assert run.best_file(WEIGHTS)


def test_a_trial_that_was_stopped_though_ahead_of_the_best_goes_on_from_its_checkpoint(queue: Queue) -> None:
    """Trial 3 begins ahead of 1 and behind 2, which then falls behind 1."""
    fixed = "--set model.latent_dim=2 --set training.batch_size=64 --cpus-per-trial 2 --epochs 12 --name promoted"
    varied = "--search grid --scheduler asha --no-defaults-first --vary optimizer.lr=0.03,0.0023,0.0018"
    done = queue.raygen("tune", "vae", *fixed.split(), *varied.split())
    assert done.returncode == 0, done.stderr
    run = queue.run("promoted")
    trials = run.look().trials
    assert [trial.parameters["optimizer.lr"] for trial in trials] == [0.03, 0.0023, 0.0018]
    assert [trial.progress.was_promoted for trial in trials] == [False, False, True]
    assert [len(trial.epochs) for trial in trials] == [12, 3, 3]
    assert [epoch.step for epoch in trials[2].epochs] == [epoch.step for epoch in trials[1].epochs]
    assert "trial 3 goes on: it was ahead of the best at epoch 1" in queue.raygen("logs", "promoted").stdout
