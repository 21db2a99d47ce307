"""Trained models by the name of their run, and images as such a model takes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from raygen import files
from raygen.errors import SpecError
from raygen.preparation import with_absolute_paths
from raygen.protocol import COMPONENTS, FittedPrior
from raygen.runs import CHECKPOINT, Run, default_storage

if TYPE_CHECKING:
    from raygen.data import Dataset, Split
    from raygen.inspection import Selection
    from raygen.results import TrainedModel

BEST_PLACE = r"[1-9]\d*"
"""The name of a folder of one of the best models."""

ModelPlace: TypeAlias = str | Path | Run
"""A run or its name or folder, a best/N folder, or a .safetensors file with its spec.json."""


def load(
    place: ModelPlace,
    *,
    prior: FittedPrior | None = None,
    components: int | None = None,
    storage: Path | None = None,
) -> TrainedModel:
    """The best model of a run, or the one in a best/N folder or a .safetensors file.

    `prior="gmm"` fits a mixture of so many Gaussians over its latents, from which it is then sampled. Raises RunError
    if there is no model or it has no encoder to fit a prior with, CheckpointError if its files are damaged.
    """
    from raygen import results

    return with_prior(results.load(find_checkpoint(place, storage=storage)), prior, components)


def loaded(model: ModelPlace | TrainedModel, storage: Path | None = None) -> TrainedModel:
    """The model itself, or the one that `load` finds."""
    return load(model, storage=storage) if isinstance(model, str | Path | Run) else model


def with_prior(trained: TrainedModel, prior: FittedPrior | None, components: int | None) -> TrainedModel:
    """The model with the prior that was asked for; raises as `load` does, SpecError for another, or its components."""
    if prior is None:
        if components is not None:
            raise SpecError("--components is for a mixture: add --prior gmm")
        return trained
    if prior not in get_args(FittedPrior):
        raise SpecError(f"there is no prior {prior!r} to fit; priors: {', '.join(get_args(FittedPrior))}")
    if components is not None and components < 1:
        raise SpecError(f"a mixture has 1 component or more, not {components}: use --components {COMPONENTS}")
    from raygen import inspection
    from raygen import prior as priors

    inspection.require_encoder(trained, "leave out --prior gmm")
    return priors.with_mixture(trained, load_images(trained), COMPONENTS if components is None else components)


def find_checkpoint(place: ModelPlace, *, storage: Path | None = None) -> Path:
    """Where the best model of a run is, or the best/N folder or .safetensors file itself; raises RunError."""
    if isinstance(place, Run):
        return place.best()
    path = Path(place)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if (path / CHECKPOINT).is_file():
        return path
    return Run.open(str(place), Path(storage or default_storage())).best()


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
    data: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
    all_classes: bool = False,
) -> Dataset:
    """The data set that a model was trained on, or another one, prepared as those images were.

    `all_classes` adds to the normal class, if a model was trained on one only, the others.
    Raises SpecError and DataError if there is none, or its images are of another shape than the model's.
    """
    import raygen.data
    from raygen import results

    given: dict[str, Any] = {
        "data.source": data,
        "data.root": data_root and str(data_root),
        "data.image_size": image_size,
    }
    settings = {path: value for path, value in given.items() if value is not None}
    if all_classes:
        settings["data.normal_class"] = None
    dataset = raygen.data.load(trained.spec.with_settings(with_absolute_paths(settings)).data)
    results.check_shape(trained, dataset)
    return dataset


def select_images(
    trained: TrainedModel,
    split: Split | Literal["all"] | None,
    *,
    data: str | None = None,
    data_root: Path | None = None,
    image_size: int | None = None,
) -> Selection:
    """The images in `split` of all classes: unless given the validation images, or all of another data set.

    Raises as `load_images` does, SpecError for test images that the model's training may have seen.
    """
    from raygen import inspection, results

    if split not in (None, *inspection.PARTS, "all"):
        raise SpecError(f"there is no part {split!r}; parts: {', '.join(inspection.PARTS)}, all")
    dataset = load_images(trained, data=data, data_root=data_root, image_size=image_size, all_classes=True)
    if split == "test":
        results.held_out_part(trained, dataset, split)
    return inspection.select(dataset, split or ("all" if data else "validation"))
