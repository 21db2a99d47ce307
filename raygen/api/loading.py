"""Trained models by the name of their run, and images as such a model takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from raygen import device as devices
from raygen import files
from raygen.errors import RunError, SpecError
from raygen.preparation import with_absolute_paths
from raygen.protocol import COMPONENTS, FittedPrior
from raygen.record.run import WEIGHTS, Run, is_run_folder
from raygen.storage import Storage, default_storage

if TYPE_CHECKING:
    from raygen.data import Dataset, Split
    from raygen.inspection import Selection
    from raygen.results import TrainedModel

BEST_PLACE = r"[1-9]\d*"
"""The name of a folder of one of the best models."""

ModelPlace: TypeAlias = str | Path | Run
"""A run or its name, RUN/best/N, a folder as `raygen get` makes them, or a .safetensors file with its spec.json."""


def load(
    place: ModelPlace,
    *,
    prior: FittedPrior | None = None,
    components: int | None = None,
    device: str = "auto",
    storage: str | Path | None = None,
) -> TrainedModel:
    """The best model of a run, or another that RUN/best/2, a folder of `raygen get` or a .safetensors file names.

    `prior="gmm"` fits a mixture of so many Gaussians over its latents, from which it is then sampled. It is on the
    first GPU, or without one on the CPU, unless `device` says "cpu", "cuda" or "cuda:1". Raises RunError if there is
    no model or it has no encoder to fit a prior with, CheckpointError if its files are damaged, SpecError for a device
    that is not there, OutOfMemoryError for a GPU of too little memory.
    """
    return with_prior(find_model(place, storage=storage).load(device), prior, components)


def loaded(model: ModelPlace | TrainedModel, device: str, storage: str | Path | None = None) -> TrainedModel:
    """The model that `load` finds, or the model itself: where it is, or a copy on another device that is named."""
    if isinstance(model, str | Path | Run):
        return load(model, device=device, storage=storage)
    return model if device == "auto" else model.to(devices.find(device))


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


@dataclass(frozen=True)
class ModelSource:
    """Where a trained model is: one of the best of a run, or files in a folder."""

    name: str
    run: Run | None = None
    place: int = 1
    path: Path | None = None

    def load(self, device: str = "auto") -> TrainedModel:
        """The model on a device, "auto" or as `raygen.device.find` takes it; raises as `load` does."""
        from raygen import results

        found = devices.find(device)
        if self.run is not None:
            return results.of_run(self.run, self.place).to(found)
        assert self.path is not None
        return results.load(self.path).to(found)

    def check_writable(self, name: str) -> None:
        """Raise RunError if no file of that name can be kept beside the model."""
        if self.path is not None:
            files.check_writable(self._folder / name)

    def read(self, name: str) -> bytes | None:
        """A file beside the model; None if there is none."""
        if self.run is not None:
            return self.run.best_files(self.place).get(name)
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> str:
        """Keep a file beside the model; returns in words where. Raises RunError and StorageError."""
        if self.run is not None:
            self.run.put_beside_best(name, content, self.place)
            return f"{self.run.name}/best/{self.place}"
        with files.whole(self._folder / name) as partial:
            partial.write_bytes(content)
        return str(self._folder / name)

    @property
    def _folder(self) -> Path:
        assert self.path is not None
        return self.path if self.path.is_dir() else self.path.parent


def find_model(place: ModelPlace, *, storage: str | Path | None = None) -> ModelSource:
    """Where a model is that is named by its run, RUN/best/N, a folder of `raygen get` or a .safetensors file.

    Raises RunError if there is no such run.
    """
    if isinstance(place, Run):
        return ModelSource(place.name, run=place)
    path = Path(place)
    if (path.suffix == ".safetensors" and path.is_file()) or (path / WEIGHTS).is_file():
        return ModelSource(str(place), path=path)
    name, _, number = str(place).partition("/best/")
    if number and not re.fullmatch(BEST_PLACE, number):
        raise RunError(f"{place}: the best models of a run are {name}/best/1, {name}/best/2 and so on")
    try:
        run = find_run(name, storage)
    except RunError:
        if not path.is_dir() or is_run_folder(path):
            raise
        raise RunError(
            f"{place} holds no model, and no run is called so: name one that `raygen get` has made, such as {place}/1"
        ) from None
    # A beginning of its name was enough to find it; what keeps where a model came from keeps all of it.
    return ModelSource(f"{run.name}/best/{number}" if number else run.name, run=run, place=int(number or 1))


def find_run(name: str, storage: str | Path | None = None) -> Run:
    """The run of that name or unambiguous beginning of a name; raises RunError if there is none."""
    return Run.open(name, Storage(storage or default_storage()))


def copy_best(name: str, folder: Path, *, replace: bool = False, storage: str | Path | None = None) -> tuple[Run, int]:
    """Copy a run's best models to folder/1 … folder/k, all of them or none; returns the run, and how many they are.

    `replace` removes the models that such a copy has left there. Raises RunError if there is no run or best model, or
    the folder holds something else.
    """
    run = find_run(name, storage)
    run.best_file(WEIGHTS)
    count = len(run.look().best)
    with files.whole_folder(folder, replaces=BEST_PLACE if replace else None) as partial:
        for place in range(1, count + 1):
            (partial / str(place)).mkdir()
            for file, content in run.best_files(place).items():
                (partial / str(place) / file).write_bytes(content)
    return run, count


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
    dataset = raygen.data.load(trained.spec.with_settings(with_absolute_paths(settings)).data, trained.images)
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
