"""Raygen from Python: what a notebook may call.

    import raygen
    run = raygen.tune("vae", {"data.source": "fashion-mnist", "search.trials": 8})
    model = raygen.load(run.name).model

Nothing here imports torch or Ray before a job is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen import files
from raygen.preparation import (
    Prepared,
    check_data,
    prepare_search,
    prepare_training,
    start_from,
    with_absolute_paths,
)
from raygen.runs import CHECKPOINT, Run, default_storage
from raygen.site import Site

if TYPE_CHECKING:
    from raygen.data import Dataset
    from raygen.results import TrainedModel
    from raygen.spec import Settings

BEST_PLACE = r"[1-9]\d*"
"""The name of a folder of one of the best models."""


def train(
    model: str,
    settings: Settings | None = None,
    *,
    autoencoder: str | Path | None = None,
    storage: Path | None = None,
    address: str | None = None,
) -> Run:
    """Train `model` with some fields of its spec set, and wait; raises what the job ended with unless it succeeded.

    A gan's generator begins as the decoder of `autoencoder`, a run's name or whatever else `load` takes, if given.
    """
    site = Site(storage, address)
    prepared = prepare_training(model, settings or {}, site.capacity())
    if autoencoder is not None:
        prepared = start_from(find_checkpoint(autoencoder, storage=storage), prepared)
    return _to_the_end(site, prepared)


def tune(
    model: str,
    settings: Settings | None = None,
    *,
    space: str | None = None,
    vary: Mapping[str, str] | None = None,
    storage: Path | None = None,
    address: str | None = None,
) -> Run:
    """Search over `space` (a name or a TOML file; the model's own unless given), and wait; raises like `train`.

    `vary` makes a space of its own: {"model.latent_dim": "4,8,16", "optimizer.lr": "1e-4..1e-2"}.
    """
    site = Site(storage, address)
    return _to_the_end(site, prepare_search(model, settings or {}, site.capacity(), space=space, vary=vary))


def load(run_or_path: str | Path, *, storage: Path | None = None) -> TrainedModel:
    """The best model of a run, by the run's name or folder, the one in a best/N folder, or of a .safetensors file.

    Raises RunError where there is none, CheckpointError where its files are damaged.
    """
    from raygen import results

    return results.load(find_checkpoint(run_or_path, storage=storage))


def find_checkpoint(run_or_path: str | Path, *, storage: Path | None = None) -> Path:
    """Where the best model of a run is, or the best/N folder or .safetensors file itself; raises RunError."""
    path = Path(run_or_path)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if (path / CHECKPOINT).is_file():
        return path
    return Run.open(str(run_or_path), Path(storage or default_storage())).best()


def copy_best(run_or_path: str | Path, folder: Path, *, replace: bool = False, storage: Path | None = None) -> Run:
    """Copy a run's best/1 … best/k to folder/1 … folder/k, all of them or none, and return the run.

    `replace` removes the models that such a copy has left there. Raises RunError if there is no run or best model, or
    the folder holds something else.
    """
    run = Run.open(str(run_or_path), Path(storage or default_storage()))
    run.best()
    places = run.best_places()
    with files.whole_folder(folder, replaces=BEST_PLACE if replace else None) as partial:
        for place in places:
            shutil.copytree(place, partial / place.name)
    return run


def load_images(
    trained: TrainedModel,
    *,
    source: str | None = None,
    root: Path | None = None,
    image_size: int | None = None,
    all_classes: bool = False,
) -> Dataset:
    """The data set that a model was trained on, or another `source`, prepared as those images were.

    `all_classes` adds to the normal class, where a model was trained on one only, the others.
    Raises SpecError and DataError where there is none, or its images are of another shape than the model's.
    """
    from raygen import data, results

    given: dict[str, Any] = {"data.source": source, "data.root": root and str(root), "data.image_size": image_size}
    settings = {path: value for path, value in given.items() if value is not None}
    if all_classes:
        settings["data.normal_class"] = None
    dataset = data.load(trained.spec.with_settings(with_absolute_paths(settings)).data)
    results.check_shape(trained, dataset)
    return dataset


def _to_the_end(site: Site, prepared: Prepared) -> Run:
    check_data(prepared)
    try:
        return site.wait(site.submit(prepared))
    finally:
        site.service.wait_until_ended(site.store)
