"""Whole jobs on a real cluster, started and broken as people start and break them."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

import raygen as package
from cli.console import COLOURS
from raygen import data
from raygen.collection import collect_best
from raygen.queue.job import JobState
from raygen.record.layout import RunKeys
from raygen.record.log import LogTail
from raygen.record.run import PICTURE
from raygen.record.view import Trial
from raygen.spec import TrainSpec
from raygen.storage import Storage
from raygen.training.checkpoint import MODEL, read_weights
from raygen.training.loop import fit
from tests.cluster.weights import (
    assert_close,
    assert_equal,
    final_weights,
    training_writes,
    undisturbed,
    undisturbed_pair,
)
from tests.searches import begin, create, train_trial
from tests.typed_commands import PATIENCE_S, Queue, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def only_trial(queue: Queue, name: str) -> Trial:
    [trial] = queue.run(name).look().trials
    return trial


def epochs_done(queue: Queue, name: str) -> int:
    """Of the first trial."""
    return max((len(trial.epochs) for trial in queue.run(name).look().trials[:1]), default=0)


def test_a_search_ends_with_best_checkpoints_that_load_and_sample(queue: Queue, tmp_path: Path) -> None:
    done = queue.raygen("tune", "vae", "--trials", "5", "--epochs", "4", "--name", "search", "-o", "json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert "ray" not in done.stderr.lower().replace("raygen", ""), "Ray's own talk must not reach the screen"
    assert len(summary["trials"]) == 5
    values = [trial["objective"] for trial in summary["trials"]]
    assert values == sorted(values, reverse=True)
    assert len({trial["parameters"]["optimizer.lr"] for trial in summary["trials"]}) == 5
    run = queue.run("search")
    view = run.look()
    assert all(list(trial.progress.pictures) == [1, 2, 4] for trial in view.trials if len(trial.epochs) == 4)
    assert len(view.best) == 3
    for place, value in enumerate(values[:3], start=1):
        trained = package.load(f"search/best/{place}", storage=queue.storage)
        assert trained.metrics["value"] == value
        assert run.best_file(PICTURE, place)

    picture = tmp_path / "grid.png"
    assert queue.raygen("sample", "search", "--n", "9", "-o", str(picture)).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = json.loads(queue.raygen("show", "search", "-o", "json").stdout)
    assert shown["trials"] == json.loads(json.dumps(run.summary()["trials"]))
    assert [event["to"] for event in shown["job"]["events"]] == ["queued", "starting", "running", "succeeded"]
    assert json.loads(queue.raygen("ls", "-o", "json", "-n", "1").stdout)[0]["job"] == "search"
    assert "only a failed or cancelled job" in queue.raygen("tune", "--resume", "search").stderr


def test_two_processes_train_what_one_does(queue: Queue, tmp_path: Path) -> None:
    # A rate at which rounding does not grow with every step.
    options = "--cpus 2 --workers 2 --epochs 2 --lr 2e-4 --name two"
    done = queue.raygen("train", "gan", *options.split())
    assert done.returncode == 0, done.stderr
    trial = only_trial(queue, "two")
    weights, metrics = undisturbed(trial.spec(), tmp_path / "alone")
    assert_close(final_weights(queue.run("two"), trial, tmp_path), weights, tolerance=1e-5)
    assert trial.epochs[-1].metrics == pytest.approx(metrics, rel=1e-3)


def test_a_gan_begins_as_the_decoder_of_a_run_that_is_not_needed_any_more(queue: Queue, tmp_path: Path) -> None:
    settings = {"model.hidden": [48, 24], "model.latent_dim": 6, "training.epochs": 40, "optimizer.lr": 3e-3}
    spec = TrainSpec.create("ae", settings)
    autoencoder = begin(create(tmp_path / "elsewhere", spec, name="shapes"))
    train_trial(autoencoder, 1, {}, data.load(spec.data))
    collect_best(autoencoder)
    folder = tmp_path / "shapes" / "1"
    got = queue.raygen("get", "shapes", "-o", str(folder.parent), RAYGEN_STORAGE=autoencoder.storage.url)
    assert got.returncode == 0, got.stderr
    form = ("--set", "model.arch=mlp", "--set", "model.hidden=[48,24]", "--latent-dim", "6")
    short = ("--cpus", "1", "--epochs", "2", "--lr", "2e-4", "--name", "begun", "--detach")
    queued = queue.raygen("train", "gan", *form, "--from", str(folder), *short)
    assert queued.returncode == 0, queued.stderr
    shutil.rmtree(folder)
    queue.wait_for("begun", JobState.SUCCEEDED)
    trial, run = only_trial(queue, "begun"), queue.run("begun")
    spec = trial.spec()
    warm_weights = tmp_path / "warm.safetensors"
    warm_weights.write_bytes(run.read(RunKeys("begun").warm_start) or b"")
    epochs = list(fit(spec, data.load(spec.data), tmp_path / "alone", warm_weights=warm_weights))
    expected = dict(read_weights(tmp_path / "alone", prefix=MODEL))
    assert_close(final_weights(run, trial, tmp_path), expected, tolerance=1e-4)
    assert trial.epochs[-1].metrics == pytest.approx(epochs[-1].metrics, rel=1e-3)
    scratch = spec.model_copy(update={"warm_start": None})
    first = next(fit(scratch, data.load(spec.data), tmp_path / "scratch"))
    assert trial.epochs[0].metrics["val_frechet"] < 0.7 * first.metrics["val_frechet"]


def test_a_killed_worker_process_costs_nothing_but_time(queue: Queue, tmp_path: Path) -> None:
    options = "--workers 2 --epochs 80 --set training.checkpoint_every_s=0.5 --name maimed --quiet"
    process = queue.start("train", "gan", *options.split())
    wait_until(lambda: len(queue.head_processes("RayTrainWorker")) == 2, "two worker processes")
    wait_until(lambda: epochs_done(queue, "maimed") >= 5, "five epochs")
    wait_until(lambda: only_trial(queue, "maimed").progress.checkpoint is not None, "a checkpoint")
    queue.head_processes("RayTrainWorker")[0].kill()
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "finished" in output
    trial = only_trial(queue, "maimed")
    assert [epoch.epoch for epoch in trial.epochs] == list(range(1, 81))
    assert_equal(final_weights(queue.run("maimed"), trial, tmp_path), undisturbed_pair(trial.spec(), tmp_path))


def kill_actors(queue: Queue) -> list[int]:
    """Kill the processes that train; none is found in the moment in which Ray gives one its name."""
    actors = queue.head_processes("ray::ResourceTrainable")
    for actor in actors:
        actor.kill()
    return [actor.pid for actor in actors]


def test_kills_of_a_training_that_gets_further_lose_no_attempt(queue: Queue) -> None:
    options = "--epochs 400 --set training.checkpoint_every_s=0.2 --name hunted --detach"
    assert queue.raygen("train", "vae", *options.split()).returncode == 0
    done = 0
    for _ in range(3):  # once more than one that gets no further may be lost and go on
        wait_until(lambda after=done: epochs_done(queue, "hunted") > after + 10, "ten more epochs")
        done = epochs_done(queue, "hunted")
        wait_until(lambda: kill_actors(queue), "its actor")
    watched = queue.raygen("watch", "hunted", "--quiet")
    assert watched.returncode == 0, watched.stderr
    assert [epoch.epoch for epoch in only_trial(queue, "hunted").epochs] == list(range(1, 401))
    assert [attempt.outcome for attempt in queue.store.attempts(queue.job("hunted"))] == ["succeeded"]


def test_a_training_that_is_killed_and_gets_no_further_is_lost(queue: Queue) -> None:
    options = "--epochs 100000 --set training.checkpoint_every_s=3600 --name stuck --detach"
    assert queue.raygen("train", "vae", *options.split()).returncode == 0
    killed: set[int] = set()

    def is_lost() -> bool:
        killed.update(kill_actors(queue))
        return queue.job("stuck").state is JobState.RECOVERING

    wait_until(is_lost, "the attempt to be lost")
    assert len(killed) == 3
    assert queue.job("stuck").reason.startswith("The actor")
    assert queue.raygen("cancel", "stuck").returncode == 0


def test_ctrl_c_leaves_the_job_running_cancel_ends_it_and_retry_finishes_it(queue: Queue) -> None:
    process = queue.start("tune", "ae", "--trials", "6", "--epochs", "100", "--scheduler", "fifo", "--name", "long")
    wait_until(lambda: any(job.name == "long" for job in queue.store.list()), "the job")
    run = queue.run("long")
    wait_until(lambda: any(record.state == "finished" for record in run.records()), "a finished trial")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "raygen watch long" in errors
    assert "raygen cancel long" in errors
    assert "Traceback" not in errors
    assert queue.job("long").state is JobState.RUNNING

    assert queue.raygen("cancel", "long").returncode == 0
    assert queue.raygen("wait", "long", "--for", "cancelled", "--timeout", "15").returncode == 0
    assert not queue.head_processes("raygen.cluster.driver", f"{queue.storage} long")
    assert json.loads(queue.raygen("show", "long", "-o", "json").stdout)["state"] == "interrupted"
    finished = {record.number for record in run.records() if record.state == "finished"}
    assert 0 < len(finished) < 6
    before = training_writes(run, finished)

    retried = queue.raygen("tune", "--resume", "long")
    assert retried.returncode == 0, retried.stderr
    assert [record.state for record in run.records()] == ["finished"] * 6
    assert training_writes(run, finished) == before, "finished, and run again"
    assert run.look().best


def test_a_job_whose_driver_is_killed_goes_on_by_itself(queue: Queue) -> None:
    options = "--epochs 300 --set training.checkpoint_every_s=0.2 --name orphan --detach"
    assert queue.raygen("train", "vae", *options.split()).returncode == 0
    wait_until(lambda: epochs_done(queue, "orphan") >= 3, "three epochs")
    for driver in queue.head_processes("-u -m raygen.cluster.driver", f"{queue.storage} orphan"):
        driver.kill()
    queue.wait_for("orphan", JobState.RECOVERING)
    watched = queue.raygen("watch", "orphan", "--quiet")
    assert watched.returncode == 0, watched.stderr
    assert [epoch.epoch for epoch in only_trial(queue, "orphan").epochs] == list(range(1, 301))
    assert [attempt.outcome.partition(":")[0] for attempt in queue.store.attempts(queue.job("orphan"))] == [
        "recovering",
        "succeeded",
    ]


def test_a_search_goes_on_past_trials_that_fail(queue: Queue, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text(
        'model = "vae"\nobjective = "val_elbo"\ndirection = "max"\n'
        '[parameters]\n"optimizer.lr" = { choice = [1e-3, 1e30] }\n'
    )
    options = "--trials 6 --epochs 2 --search random --name lossy"
    done = queue.raygen("tune", "vae", "--space", str(space), *options.split())
    assert done.returncode == 0, done.stderr
    states = {record.parameters["optimizer.lr"]: record for record in queue.run("lossy").records()}
    assert states[1e-3].state in ("finished", "stopped")
    assert states[1e30].state == "failed"
    assert "is not finite at step" in states[1e30].reason
    assert "is not finite at step" in done.stdout


def test_a_training_that_cannot_go_on_fails_at_once_with_one_line_and_code_1(queue: Queue) -> None:
    done = queue.raygen("train", "vae", "--lr", "1e30", "--epochs", "1", "--name", "hot", "--verbose", "-o", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["state"] == "failed", "what Ray prints must not mix with the result"
    assert "the vae loss is not finite at step" in done.stderr
    assert "Traceback" not in done.stderr
    assert queue.job("hot").attempt == 1, "what would fail the same way again is not tried again"


def test_a_search_over_trainings_of_two_processes(queue: Queue) -> None:
    options = "--trials 2 --epochs 3 --workers 2 --cpus 2 --name pairs"
    done = queue.raygen("tune", "ae", *options.split())
    assert done.returncode == 0, done.stderr
    run = queue.run("pairs")
    assert run.look().plan.concurrent == 1
    assert all(record.objective is not None for record in run.records())
    assert not any("ray" in entry.key for entry in run.storage.list("pairs")), "what Ray writes for itself stays out"


def test_following_a_log_prints_every_line_once(queue: Queue) -> None:
    assert queue.raygen("train", "ae", "--epochs", "50", "--name", "chatty", "--detach").returncode == 0
    following = queue.start("logs", "chatty", "-f")
    printed, _ = following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 0
    assert queue.job("chatty").state is JobState.SUCCEEDED
    kept = LogTail(Storage(queue.storage), "chatty").lines(ended=True)
    assert printed == "".join(f"{COLOURS.sub('', line)}\n" for line in kept)
    assert printed.count("View detailed results here") == 1
    assert queue.raygen("logs", "chatty", "-n", "2").stdout.splitlines() == printed.splitlines()[-2:]
    assert queue.raygen("logs", "chatty", "--since", "1d").stdout == printed
    assert queue.raygen("logs", "chatty", "--since", "0s").stdout == ""
    assert "write numbers with s, m, h or d" in queue.raygen("logs", "chatty", "--since", "yesterday").stderr
