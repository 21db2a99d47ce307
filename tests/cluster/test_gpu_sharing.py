"""How many trials share a GPU is measured in a task of a Ray cluster; its GPU stands for the CPU here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raygen.cluster.gpu_sharing import shared
from raygen.cluster.head import Head
from raygen.plan import Plan
from raygen.record.attempt import Attempt
from raygen.record.run import Run
from raygen.report import Report
from raygen.spec import TuneSpec
from raygen.storage import Storage
from tests.searches import add_trial, begin, run_of

WHOLE = Plan(concurrent=1, workers=1, gpus_per_worker=1, cpus_per_worker=2)

DRIVER = """
import json, sys
import ray
from raygen.cluster import gpu_sharing
from raygen.record.run import Run
from raygen.storage import Storage
from tests.searches import begin

gpu_sharing.WARM_UP_S, gpu_sharing.SPAN_S = 0.2, 0.5
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
attempt = begin(Run(Storage(sys.argv[1]), "search"))
view = attempt.look()
for device in sys.argv[2:]:
    plan = gpu_sharing.shared(attempt, view, view.spec(), device=device)
    print(json.dumps(plan.as_json()), flush=True)
"""
"""Plans for one device after the other, on a cluster of its own."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    settings = {"data.source": "digits", "search.trials": 4, "resources.gpus_per_trial": "auto"}
    spec = TuneSpec.search_over(None, "vae", settings, vary={"training.batch_size": "64,128"})
    return Run.create(Storage(tmp_path / "runs"), "tune", spec, WHOLE, "max", name="search")


def planned(attempt: Attempt) -> Plan:
    """The plan if no cluster is asked: there is none."""
    view = attempt.look()
    return shared(attempt, view, view.spec(), device="cpu")


@pytest.mark.ray
def test_what_was_measured_holds_for_all_attempts(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path / "runs"), "cuda:99", "cpu"],
        env={**os.environ, **Head(state).environment()},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert driver.returncode == 0, driver.stderr
    said, failed, plan, again, found, shared_plan = driver.stdout.splitlines()
    assert said == again == "measuring by short trainings how many trials are best on each GPU"
    # What cannot be measured is no reason to fail; another attempt may have more luck.
    assert failed.startswith("1 trial on each GPU, as it could not be measured how many are best: 1 at once failed: ")
    assert Plan(**json.loads(plan)) == WHOLE
    assert "images per second: 1 at once" in found

    packing = run.look().packing
    assert packing is not None
    assert (packing.at_once, packing.why) in ((1, found), (2, found))
    chosen = Plan(**json.loads(shared_plan))
    assert chosen.concurrent == packing.at_once
    assert (chosen.gpus, chosen.cpus) == (WHOLE.gpus, WHOLE.cpus)

    assert planned(begin(run)) == chosen
    assert capsys.readouterr().out.strip() == found
    report = Report(run.look(), "here")
    assert report.packing == found
    assert report.as_json()["packing"] == {"at_once": packing.at_once, "why": found}


def test_nothing_is_measured_for_one_trial_more(run: Run) -> None:
    attempt = begin(run)
    for _ in range(3):
        add_trial(attempt, {"training.batch_size": 64}, [0.0])
    assert planned(attempt) == WHOLE
    assert attempt.look().packing is None


def test_of_what_was_measured_there_are_no_more_than_trials(run: Run) -> None:
    attempt = begin(run)
    attempt.keep_packing(2, "2 trials share each GPU")
    assert planned(attempt) == Plan(2, 1, 0.5, 1)
    for _ in range(3):
        add_trial(attempt, {"training.batch_size": 64}, [0.0])
    assert planned(attempt) == WHOLE


def test_a_torn_packing_is_measured_again(run: Run) -> None:
    attempt = begin(run)
    attempt.keep_packing(2, "2 trials share each GPU")
    [key] = [entry.key for entry in run.storage.list(run.name) if "packing" in entry.key]
    run.storage.put(key, b'{"format":1,"at_on')
    assert run_of(attempt).look().packing is None
