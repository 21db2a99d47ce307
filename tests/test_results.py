"""Trained models that are read back, from a run or from files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import raygen
from raygen import collection, results
from raygen.api.loading import ModelSource, copy_best, find_model
from raygen.data import Dataset
from raygen.errors import CheckpointError, RunError
from raygen.models._base import ImageShape, Sampler
from raygen.record.layout import RunKeys
from raygen.record.reading import lock
from raygen.record.run import Run
from raygen.spec import TrainSpec, TuneSpec
from raygen.training.distributed import CPU
from raygen.training.step import build_model
from tests.searches import begin, create, run_of, train_trial

SMALL = {"model.arch": "mlp", "model.hidden": [32], "training.epochs": 1}


@pytest.fixture(scope="module", params=["ae", "vae", "gan"])
def search(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Run:
    """A search of each family with two best models."""
    spec = TuneSpec.search_over(request.param, request.param, {**SMALL, "search.keep_best": 2})
    attempt = begin(create(tmp_path_factory.mktemp("storage"), spec))
    for number in (1, 2):
        parameters = {"optimizer.lr": number * 1e-3, "training.batch_size": 64, "model.latent_dim": 4 + number}
        train_trial(attempt, number, parameters, digits)
    collection.collect_best(attempt)
    return run_of(attempt)


@pytest.fixture
def small_run(storage: Path, digits: Dataset) -> Run:
    """One autoencoder's training, collected; a test may damage it."""
    attempt = begin(create(storage, TrainSpec.create("ae", SMALL)))
    train_trial(attempt, 1, {}, digits)
    collection.collect_best(attempt)
    return run_of(attempt)


# Loading


def test_loaded_models_are_ready_for_a_notebook(search: Run) -> None:
    trained = results.of_run(search)
    assert not trained.model.training
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())


def test_a_model_is_loaded_by_run_name_place_or_copied_folder(search: Run, tmp_path: Path) -> None:
    storage = search.storage.url
    copy_best(search.name, tmp_path / "copied", storage=storage)
    first = raygen.load(search.name, storage=storage)
    places: list[str | Path | Run] = [
        search,
        f"{search.name}/best/1",
        tmp_path / "copied" / "1",
        str(tmp_path / "copied" / "1"),
        tmp_path / "copied" / "1" / "model.safetensors",
    ]
    for place in places:
        loaded = raygen.load(place, storage=storage)
        assert loaded.metrics == first.metrics
        weights, expected = loaded.model.state_dict(), first.model.state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    for place in (f"{search.name}/best/2", tmp_path / "copied" / "2"):
        assert raygen.load(place, storage=storage).metrics["trial"] != first.metrics["trial"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("{name}/best/3", r"has no best model 3 \(state: running\)"),
        ("{name}/best/0", "best models of a run are .*/best/1, "),
        ("{name}/best/one", "best models of a run are .*/best/1, "),
        ("no-such-run", "there is no run 'no-such-run'"),
        ("../up", "is no name of a run"),
    ],
)
def test_a_place_without_a_model_is_named(place: str, said: str, small_run: Run) -> None:
    with lock(small_run.storage, RunKeys(small_run.name)), pytest.raises(RunError, match=said):
        raygen.load(place.format(name=small_run.name))


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_file_is_kept_beside_the_model(is_copied: bool, small_run: Run, tmp_path: Path) -> None:
    copy_best(small_run.name, tmp_path / "copied")
    place = find_model(tmp_path / "copied" / "1" if is_copied else small_run.name)
    place.check_writable("notes.json")
    assert place.read("notes.json") is None
    where = place.write("notes.json", b"{}")
    assert where == (str(tmp_path / "copied" / "1" / "notes.json") if is_copied else f"{small_run.name}/best/1")
    assert place.read("notes.json") == b"{}"


# Sampling


def test_samples_are_images_that_depend_on_the_seed_alone(search: Run) -> None:
    trained = results.of_run(search)
    if not isinstance(trained.model, Sampler):
        with pytest.raises(RunError, match="'ae' cannot be sampled: it has no prior"):
            trained.sample(4, seed=0)
        return
    images = trained.sample(503, seed=1)
    assert images.shape == (503, 1, 8, 8)
    assert (images.min() >= 0, images.max() <= 1) == (True, True)
    assert len(images.flatten(1).unique(dim=0)) > 100
    torch.manual_seed(99)
    assert torch.equal(trained.sample(503, seed=1), images)
    assert not torch.equal(trained.sample(503, seed=2), images)


@pytest.mark.parametrize(("prior", "name"), [("normal", "standard normal"), ("uniform", "uniform")])
def test_a_prior_is_called_what_it_is(prior: str, name: str) -> None:
    spec = TrainSpec.create("gan", {"model.arch": "mlp", "model.prior": prior})
    own = results.TrainedModel(build_model(spec, ImageShape(1, 8, 8), CPU), spec, {}).prior
    assert own is not None
    assert own.name == name


# What cannot be read


def test_a_folder_that_is_no_result(tmp_path: Path, storage: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path} holds no checkpoint"):
        results.load(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RunError, match=r"model\.safetensors has no spec\.json beside it"):
        results.load(tmp_path / "model.safetensors")


def test_a_run_is_no_folder_any_more(small_run: Run, storage: Path) -> None:
    """Its files are reached by its name alone."""
    with pytest.raises(
        RunError, match=f"is the folder of a run; type its name: {small_run.name} --storage {storage}$"
    ):
        raygen.load(storage / small_run.name)


def damaged(run: Run, copied: Path, name: str, change: Callable[[bytes], bytes | None]) -> list[ModelSource]:
    """The best model of a run, and a copy of it, of which a file was changed or removed in both."""
    copy_best(run.name, copied)
    key, content = run.best_key(name), change(run.best_file(name))
    if content is None:
        run.storage.delete([key])
        (copied / "1" / name).unlink()
    else:
        run.storage.put(key, content)
        (copied / "1" / name).write_bytes(content)
    return [find_model(run), find_model(copied / "1" / ("model.safetensors" if content is None else ""))]


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_damaged_weights_are_named(kept: int, small_run: Run, tmp_path: Path) -> None:
    places = damaged(small_run, tmp_path / "copied", "model.safetensors", lambda content: content[:kept])
    for place, said in zip(places, (f"best model 1 of {small_run.name}", str(tmp_path / "copied" / "1")), strict=True):
        with pytest.raises(CheckpointError, match=rf"cannot read the checkpoint {said}: model\.safetensors: .*; put"):
            place.load()


@pytest.mark.parametrize("name", ["spec.json", "metrics.json"])
@pytest.mark.parametrize("content", [b"{", b"null", b"[]", b"\xff\x00"])
def test_other_damage_is_a_checkpoint_error(name: str, content: bytes, small_run: Run, tmp_path: Path) -> None:
    line = rf"^cannot read the checkpoint .*: {re.escape(name)}: .*; put a whole copy in its place, or train anew$"
    for place in damaged(small_run, tmp_path / "copied", name, lambda before: content):
        with pytest.raises(CheckpointError, match=line) as caught:
            place.load()
        assert "\n" not in str(caught.value)


def test_weights_of_another_model(small_run: Run, tmp_path: Path) -> None:
    other = small_run.look().spec().with_settings({"model.hidden": [5]}).model_dump_json().encode()
    for place in damaged(small_run, tmp_path / "copied", "spec.json", lambda content: other):
        with pytest.raises(CheckpointError, match="cannot read the checkpoint "):
            place.load()


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named(name: str, small_run: Run) -> None:
    small_run.storage.delete([small_run.best_key(name)])
    with pytest.raises((CheckpointError, RunError), match=name.replace(".", r"\.")):
        results.of_run(small_run)
