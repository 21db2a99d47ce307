"""The final judging of a job with GPUs, in a process of Ray's that holds some, which here may be numbers alone."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from raygen import collection
from raygen.cluster import judging
from raygen.data import Dataset
from raygen.errors import CheckpointError, ProcessLostError
from raygen.plan import Plan
from raygen.record.attempt import Attempt
from raygen.spec import TuneSpec
from tests.searches import begin, create, run_of, train_trial

pytestmark = pytest.mark.ray

SMALL = {"model.arch": "mlp", "model.hidden": [32], "training.epochs": 1, "search.keep_best": 2}
ON_A_GPU = Plan(concurrent=1, workers=1, gpus_per_worker=1, cpus_per_worker=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster with a GPU that CUDA need not find: as far as Ray goes it is one."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray leaves one at home
        ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def search(tmp_path: Path, digits: Dataset) -> Attempt:
    """A search whose trials have ended."""
    attempt = begin(create(tmp_path / "runs", TuneSpec.search_over("vae", "vae", SMALL)))
    for number, lr in enumerate((1e-3, 3e-3), start=1):
        train_trial(attempt, number, {"optimizer.lr": lr}, digits)
    return attempt


def collected(attempt: Attempt) -> list[dict[str, Any]]:
    """What is known of the best models."""
    found: list[dict[str, Any]] = run_of(attempt).summary()["best"]
    return found


def judges() -> list[psutil.Process]:
    """The processes that judge."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Judge"):
                found.append(process)
    return found


@pytest.mark.usefixtures("cluster")
def test_it_judges_elsewhere_as_it_does_here_and_leaves_the_devices(
    search: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    collection.collect_best(search)
    here = collected(search)
    with judging.on_devices(search, ON_A_GPU) as elsewhere:
        assert elsewhere is not None
        assert not judges(), "nothing holds a GPU before there is something to judge"
        collection.collect_best(search, elsewhere)
        [process] = judges()
    for ours, theirs in zip(here, collected(search), strict=True):
        assert theirs["trial"] == ours["trial"]
        assert theirs["metrics"] == pytest.approx(ours["metrics"], rel=1e-3)
        assert (theirs["test"] is None) == (ours["test"] is None)
    assert collected(search)[0]["test"]["metrics"] == pytest.approx(here[0]["test"]["metrics"], rel=1e-3)
    assert "the best models are judged on " in capsys.readouterr().out
    process.wait(timeout=60)


@pytest.mark.usefixtures("cluster")
def test_a_process_that_is_lost_costs_the_attempt_and_an_error_there_is_one_here(search: Attempt) -> None:
    trial = search.look().trial(1)
    with judging.on_devices(search, ON_A_GPU) as judge:
        assert judge is not None
        judge(trial, "validation")
        [process] = judges()
        process.kill()
        with pytest.raises(ProcessLostError, match=r"^the process that judged the best models was lost: "):
            judge(trial, "validation")
    assert trial.progress.checkpoint is not None
    search.storage.delete([trial.progress.checkpoint])
    with judging.on_devices(search, ON_A_GPU) as judge:
        assert judge is not None
        with pytest.raises(CheckpointError, match=r"^the checkpoint .* of trial 1 is gone$"):
            judge(trial, "validation")


@pytest.mark.usefixtures("cluster")
def test_a_stop_is_heeded_while_it_waits_for_devices(search: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the epochs showed has to do then; without a stop a wait for what does not come has an end too."""
    missing = Plan(concurrent=1, workers=1, gpus_per_worker=2, cpus_per_worker=1)
    asked = iter([False] * 5)
    monkeypatch.setattr(search, "has_heard_stop", lambda: next(asked, True))
    with judging.on_devices(search, missing) as elsewhere:
        collection.collect_best(search, elsewhere)
    assert [facts["validation_images"] for facts in collected(search)] == [180, 180]
    assert search.look().trial(1).progress.judgement is None
    monkeypatch.setattr(judging, "PATIENCE_S", 0.5)
    with judging.on_devices(search, missing) as judge:
        assert judge is not None
        with pytest.raises(ProcessLostError, match=r"^no devices were there to judge the best models on for "):
            judge(search.look().trial(1), "validation")


def test_without_gpus_it_is_done_here(search: Attempt) -> None:
    with judging.on_devices(search, Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)) as elsewhere:
        assert elsewhere is None
