"""The command line without a cluster: what it refuses, what it prints where, what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from raygen import data, machine, models, space
from raygen.capacity import Capacity
from raygen.queue.job import Job, JobState, Request
from raygen.queue.store import Store
from raygen.storage import Storage

RAYGEN = Path(sys.executable).with_name("raygen")


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    return CliRunner(env={"RAYGEN_STORAGE": str(tmp_path / "runs"), "RAY_ADDRESS": ""})


REFUSED = {
    "tune": "name a model",
    "tune vea": "did you mean 'vae'",
    "train vea": "did you mean 'vae'",
    "tune vae --epoch 3": "No such option: --epoch",
    "train vae --epochs three": "--epochs",
    "train vae --epochs 0": "training.epochs",
    "train vae --lr -1": "optimizer.lr: input should be greater than 0, got -1.0",
    "train vae --lr nan": "optimizer.lr",
    "train vae --set model.latentdim=3": "did you mean 'model.latent_dim'",
    "train vae --set optimizer.learning_rate=3": "did you mean 'optimizer.lr'",
    "train vae --set lr=3": "did you mean 'optimizer.lr'",
    "train vae --set model.hidden=wide": "model.hidden",
    "train vae --set seed": "write KEY=VALUE",
    "train vae --set seed=1 --seed 2": "seed is set twice",
    "train vae --cpus 100000": "type --cpus",
    "train vae --gpus 1000": "has",
    "train vae --workers 100000": "type --workers",
    "train vae --objective val_elbow": "did you mean 'val_elbo'",
    "train gan --objective val_elbo": "gan cannot be judged by val_elbo; it can by val_coverage",
    "train gan --set data.corruption=noise": "leave it out, or train ae, vae, aegan or vaegan",
    "train ae --set model.noise_std=0.2": "type --set data.corruption=noise",
    "train gan --compile on --set model.loss=wgan-gp": "leave out --compile",
    "train vae --data fashion-mnst": "did you mean fashion-mnist",
    "train vae --data no/such/folder": "no/such/folder",
    "train vae --batch-size 100000": "1437 training images",
    "train vae --image-size 4": "data.image_size",
    "train vae --address 127.0.0.1:6379": "write http://HOST:8265",
    "train vae --address nonsense": "nonsense is not the address of a Ray dashboard",
    "train vae --name ../up": "use letters, digits",
    "train vae --retries -1": "--retries",
    "tune vae --set optimizer.lr=1e-3": "is what the space 'vae' varies",
    "tune vae --space gan": "this space is for 'gan'",
    "tune vae --space no.toml": "there is no search space file 'no.toml'",
    "tune vae --trials 0": "search.trials",
    "tune vae --search grid": "a grid needs the values to try, such as --vary optimizer.lr=",
    "tune vae --scheduler pbt": "type asha, median or fifo",
    "tune vae --scheduler hyperband": "input should be 'asha', 'fifo' or 'median'",
    "tune vae --replicates -1": "search.replicates",
    "train vae --set data.held_out_fraction=0.2": "type --set data.validation_fraction=0.1",
    "train vae --set health.patience=3": "did you mean 'health.patience_epochs'",
    "tune --resume nothing": "there is no job 'nothing'",
    "tune vae --resume nothing": "leave out vae",
    "tune --extend nothing --trials 3": "there is no job 'nothing'",
    "tune vae --extend nothing": "--extend takes --trials and --epochs; leave out vae",
    "tune --extend nothing --seed 3": "leave out seed",
    "tune --extend nothing --resume nothing": "type one of them",
    "show nothing": "there is no run 'nothing'",
    "train vae --storage ftp://host/runs": "ftp://host/runs is not the address of a storage: write a folder, s3://BUCKET",
    "ls --storage s3:///runs": "s3:///runs is not the address of a storage",
    "show nothing --storage s3://key:secret@bucket/runs": "s3://…: an address holds no '@' and no credentials",
    "ls --storage s3://bucket/runs?secret=x": "s3://bucket/runs: after '?' s3:// takes endpoint= and region=",
    "watch nothing": "there is no job 'nothing'",
    "logs nothing": "there is no job 'nothing'",
    "wait nothing": "there is no job 'nothing'",
    "cancel nothing": "there is no job 'nothing'",
    "retry nothing": "there is no job 'nothing'",
    "priority nothing 3": "there is no job 'nothing'",
    "rm nothing": "there is no job 'nothing'",
    "ls --state done": "type queued, starting",
    "up --gpus 1000": "type --gpus" if torch.cuda.is_available() else "leave out --gpus",
    "sample nothing": "there is no run 'nothing'",
    "sample .": ". holds no model, and no run is called so: name one that `raygen get` has made",
    "sample no/such": "'no/such' is no name of a run; `raygen ls` lists those there are",
    "get no/such": "'no/such' is no name of a run",
    "show nothing/best/1": "'nothing/best/1' is no name of a run",
    "spaces nothing": "there is no search space file 'nothing'",
    "train vae --set model.name=gan": "the model is 'vae' already",
    "train vae --set data.source=5": "data.source",
    "tune vae --set search.trials=many": "search.trials",
    "models --output yaml": "'table', 'json'",
}


@pytest.mark.parametrize("command", REFUSED)
def test_bad_input_gets_one_line_and_code_2(runner: CliRunner, tmp_path: Path, command: str) -> None:
    result = runner.invoke(app, command.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert REFUSED[command] in line
    assert not (tmp_path / "runs").exists(), "nothing may be left of a job that was refused"


def test_a_bad_array_is_named_before_anything_starts(runner: CliRunner, tmp_path: Path) -> None:
    array = tmp_path / "words.npy"
    np.save(array, np.array(["a", "b"]))
    result = runner.invoke(app, ["train", "vae", "--data", str(array)])
    assert result.exit_code == 2
    assert str(array) in result.stderr


def test_images_that_no_model_takes_are_refused_with_the_sizes_it_can(runner: CliRunner, tmp_path: Path) -> None:
    array = tmp_path / "tiny.npy"
    np.save(array, np.zeros((40, 6, 6), dtype=np.uint8))
    result = runner.invoke(app, ["train", "vae", "--data", str(array)])
    assert result.exit_code == 2
    assert "8" in result.stderr


@pytest.mark.parametrize(
    ("command", "names"), [("models", models.names()), ("datasets", data.names()), ("spaces", space.names())]
)
def test_catalogues_list_every_name_as_table_and_json(runner: CliRunner, command: str, names: dict[str, str]) -> None:
    table = runner.invoke(app, [command])
    assert table.exit_code == 0
    assert [line.split()[0] for line in table.stdout.splitlines()] == list(names)
    assert json.loads(runner.invoke(app, [command, "-o", "json"]).stdout) == names


def test_a_printed_space_is_one_that_can_be_searched(runner: CliRunner, tmp_path: Path) -> None:
    copy = tmp_path / "my_space.toml"
    copy.write_text(runner.invoke(app, ["spaces", "vae"]).stdout)
    result = runner.invoke(app, ["tune", "vae", "--space", str(copy), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["spec"]["search"]["space"]["origin"] == str(copy)


def test_dry_run_prints_plan_and_whole_spec_and_starts_nothing(runner: CliRunner, tmp_path: Path) -> None:
    options = "--trials 3 --epochs 7 --cpus 1 --set model.hidden=[32,16] --seed 5 --dry-run"
    result = runner.invoke(app, ["tune", "vae", *options.split()])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["plan"]["concurrent"] == 1
    spec = printed["spec"]
    assert (spec["search"]["trials"], spec["training"]["epochs"], spec["seed"]) == (3, 7, 5)
    assert spec["model"]["hidden"] == [32, 16]
    assert "3 trials of vae on digits, 1 at a time" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("option", "enabled"), [([], True), (["--health"], True), (["--no-health"], False)])
def test_health_is_watched_unless_it_is_turned_off(runner: CliRunner, option: list[str], enabled: bool) -> None:
    result = runner.invoke(app, ["train", "gan", *option, "--dry-run"])
    assert json.loads(result.stdout)["spec"]["health"]["enabled"] is enabled


def test_no_runs_is_said_on_stderr(runner: CliRunner) -> None:
    result = runner.invoke(app, ["ls"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "raygen tune vae" in result.stderr
    assert json.loads(runner.invoke(app, ["ls", "-o", "json"]).stdout) == []


def start_jobs(storage: Path, runs: dict[str, str]) -> tuple[Store, list[Job]]:
    """A queue with started jobs of these names, and what is in their runs' first documents."""
    store = Store.open(Storage(storage))
    dispatcher = store.register("somewhere", host="here", pid=1)
    store.saw("somewhere", Capacity.of_machine(gpus=0, cpus=len(runs), where="somewhere"))
    jobs = []
    for name, content in runs.items():
        (storage / name).mkdir()
        (storage / name / "run.json").write_text(content)
        about = {"kind": "train", "model": "ae", "data": "digits", "objective": "val_mse", "user": machine.user()}
        devices = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
        store.submit(Request(name=name, storage=str(storage), cluster="somewhere", **devices, **about))
        job = store.claim(dispatcher)
        assert job is not None
        jobs.append(job)
    return store, jobs


def test_a_list_of_jobs_reads_no_record_of_one_that_has_ended(runner: CliRunner, tmp_path: Path) -> None:
    store, [job] = start_jobs(tmp_path / "runs", {"ended": "no json"})
    store.move(job, JobState.SUCCEEDED, best_value=0.25)
    listed = runner.invoke(app, ["ls"])
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert "val_mse 0.25" in listed.stdout


def test_a_damaged_run_can_be_removed(runner: CliRunner, tmp_path: Path) -> None:
    store, [job] = start_jobs(tmp_path / "runs", {"damaged": "no json"})
    store.move(job, JobState.FAILED)
    refused = runner.invoke(app, ["rm", "damaged"])
    assert (refused.exit_code, "type --yes as well" in refused.stderr) == (2, True)
    removed = runner.invoke(app, ["rm", "damaged", "--yes"])
    assert removed.exit_code == 0, removed.output
    assert not (tmp_path / "runs" / "damaged").exists()
    assert json.loads(runner.invoke(app, ["ls", "-o", "json"]).stdout) == []


def test_one_damaged_run_does_not_hide_the_others(runner: CliRunner, tmp_path: Path) -> None:
    start_jobs(tmp_path / "runs", {"old": '{"kind": "train"}', "text": "no json"})
    listed = runner.invoke(app, ["ls"])
    assert listed.exit_code == 0
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["text", "starting"],
        ["old", "starting"],
    ]
    [line] = listed.stderr.splitlines()
    assert line.endswith("; 1 more of these runs cannot be read")
    for name, said in (("text", "text/run.json is damaged"), ("old", "written by another version of Raygen")):
        shown = runner.invoke(app, ["show", name])
        assert shown.exit_code == 0
        why, state = shown.stderr.splitlines()
        assert said in why
        assert ": starting" in state
        assert len(shown.stdout.splitlines()) == 3, "what happened to it is in the queue"


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'ray', 'torchvision', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (
        ["--help"],
        ["tune", "--help"],
        ["compare", "--help"],
        ["models"],
        ["datasets"],
        ["spaces"],
        ["ls"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stderr.splitlines()[-1] == "[]", arguments


def test_colour_is_for_terminals_and_no_color_is_honoured() -> None:
    pipe = subprocess.run([RAYGEN, "show", "nothing"], capture_output=True, text=True, check=False, timeout=60)
    assert "\x1b" not in pipe.stderr
    in_terminal = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    colour = [RAYGEN, "show", "nothing"]
    red = subprocess.run(colour, capture_output=True, text=True, check=False, env=in_terminal, timeout=60)
    assert "\x1b[31m" in red.stderr
    plain = subprocess.run(
        colour, capture_output=True, text=True, check=False, env={**in_terminal, "NO_COLOR": "1"}, timeout=60
    )
    assert not re.search(r"\x1b\[3\d", plain.stderr)


def test_shell_completion_knows_commands_and_options() -> None:
    environment = {**os.environ, "_RAYGEN_COMPLETE": "complete_bash", "COMP_WORDS": "raygen sp", "COMP_CWORD": "1"}
    done = subprocess.run([RAYGEN], capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert "spaces" in done.stdout
