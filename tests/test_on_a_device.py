"""Whatever runs a trained model does so on the model's device, and gives its results on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import raygen
from raygen import anomaly, evaluation, inspection, latent_map, latents, prior, restoration, warm_start
from raygen.api.loading import loaded
from raygen.corruption import corrupted_for_judging
from raygen.data import Dataset
from raygen.errors import OutOfMemoryError
from raygen.metrics import _classifier, _features
from raygen.models._base import ImageShape
from raygen.protocol import Protocol
from raygen.results import TrainedModel
from raygen.spec import TrainSpec
from raygen.training import drawing
from raygen.training.evaluation import evaluate, held_out_images
from raygen.training.step import build_model
from tests.stand_in_gpu import DEVICE, StandInGpu

CPU = torch.device("cpu")
FAMILIES = ("ae", "vae", "gan", "vaegan", "aegan")


@pytest.fixture
def gpu(digits: Dataset) -> Iterator[None]:
    """A stand-in, which nothing that is kept for other tests is on when it goes."""
    _classifier.trained_on(digits)  # on the CPU, as ever, and from its file from then on
    with StandInGpu():
        yield
    _features.random_network.cache_clear()
    _features.of_real.cache_clear()


def trained(family: str, digits: Dataset, **settings: Any) -> TrainedModel:
    """A model with its first weights."""
    spec = TrainSpec.create(family, {"model.latent_dim": 2, **settings})
    model = build_model(spec, ImageShape(*digits.shape), CPU)
    return TrainedModel(model.eval().requires_grad_(False), spec, {})


def moved(here: TrainedModel) -> TrainedModel:
    there = here.to(DEVICE)
    assert there.device == DEVICE
    assert here.device == CPU, "whoever has it has it where it was"
    return there


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_is_the_same_there(family: str, digits: Dataset) -> None:
    here = trained(family, digits)
    protocol = Protocol(images=60, samples=50, normal_class=0, is_samples=3)
    cards = [evaluation.evaluate(each, digits, None, protocol) for each in (here, moved(here))]
    first, second = ({name: value.value for name, value in card.values.items()} for card in cards)
    assert second == pytest.approx(first, rel=1e-5, nan_ok=True)
    assert set(first) >= {f"val_{name}" for name in ("frechet", "kid", "coverage", "nearest_ssim")} or family == "ae"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["val_elbo", "val_frechet", "val_recall", "val_mse"])
def test_spreads_are_the_same_there(name: str, digits: Dataset) -> None:
    here = trained("vae", digits)
    judge = evaluation.Judge(digits, Protocol(images=60))
    first, second = (judge.without_each_group(each, name) for each in (here, moved(here)))
    assert second == pytest.approx(first, rel=1e-5)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("family", "corruption"),
    [*((family, None) for family in FAMILIES), ("vae", "noise"), ("ae", "mask"), ("vaegan", "downsample")],
)
def test_an_epoch_is_judged_and_drawn_there(family: str, corruption: str | None, digits: Dataset) -> None:
    """With the images there too, as in a training, or on the CPU, as at its end."""
    here = trained(family, digits, **{"data.corruption": corruption} if corruption else {})
    there, options = moved(here), here.spec.evaluation.model_copy(update={"images": 60})
    images = held_out_images(digits.validation.images, options, CPU)
    inputs = corrupted_for_judging(here.spec.data, images, options.seed)
    expected = evaluate(here.model, images, options, inputs=inputs)
    for device in (CPU, DEVICE):
        placed = [None if each is None else each.to(device) for each in (images, inputs)]
        found = evaluate(there.model, placed[0], options, inputs=placed[1])
        assert found == pytest.approx(expected, rel=1e-5)
    drawn = [drawing.picture(each.model, digits.validation.images, here.spec).tobytes() for each in (here, there)]
    assert drawn[0] == drawn[1]


LOOKS: dict[str, Callable[[TrainedModel, Dataset], Any]] = {
    "sample": lambda model, digits: raygen.sample(model, 5),
    "sample from a mixture": lambda model, digits: prior.with_mixture(model, digits, 3).sample(5),
    "encode": lambda model, digits: raygen.encode(model).values,
    "decode": lambda model, digits: raygen.decode(model, torch.zeros(3, 2)),
    "reconstruct": lambda model, digits: torch.stack(raygen.reconstruct(model, 5)[:2]),
    "interpolate": lambda model, digits: raygen.interpolate(model, rows=2, steps=3),
    "score": lambda model, digits: raygen.score(model, false_alarms=0.1).values,
    "worst": lambda model, digits: in_numbers(anomaly.picture(model, digits.validation.images[:3])),
    "round trip": lambda model, digits: latents.round_trip(model, inspection.select(digits, "validation")).psnr_db,
    "map": lambda model, digits: latent_map.decode(model, latent_map.project(encoded(model, digits), None)),
    "restore": lambda model, digits: restoration.decoded(model, digits.validation.images[:5] / 255),
    "warm start": lambda model, digits: sorted(
        (name, weights.tolist()) for name, weights in safetensors.torch.load(folded(model, digits)).items()
    )[:2],
    "digest": lambda model, digits: raygen.encode(model).weights,
}


def encoded(model: TrainedModel, digits: Dataset) -> Tensor:
    return inspection.encode(model, digits.validation.images[:20])


def in_numbers(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def folded(model: TrainedModel, digits: Dataset) -> bytes:
    """The weights of a generator that begins as this model's decoder."""
    own = model.spec.model
    spec = TrainSpec.create("gan", {f"model.{name}": getattr(own, name) for name in ("arch", "latent_dim")})
    spec = spec.with_settings({"model.decoder_hidden": own.decoder_sizes})
    return warm_start.from_decoder("it", model, spec, digits)[1]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("family", "look"), [*(("vae", look) for look in LOOKS), *(("ae", look) for look in LOOKS if look != "sample")]
)
def test_what_is_found_there_comes_back(family: str, look: str, digits: Dataset) -> None:
    here = trained(family, digits)
    first, second = (LOOKS[look](each, digits) for each in (here, moved(here)))
    if isinstance(second, Tensor):
        assert second.device == CPU
        first, second = first.numpy(), second.numpy()
    if isinstance(second, np.ndarray):
        np.testing.assert_allclose(second.astype(float), first.astype(float), rtol=1e-4, atol=1e-5)
    else:
        assert first == second


@pytest.mark.usefixtures("gpu")
def test_too_little_memory_there_is_told_in_one_line(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    there = moved(trained("vae", digits))

    def fail(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(there.model, "encode", fail)
    looks = (raygen.encode, raygen.reconstruct, lambda model: raygen.evaluate(model, metrics=["mse"]))
    for look in looks:
        with pytest.raises(OutOfMemoryError, match=r"too little free memory for this; use --device cpu$"):
            look(there)


@pytest.mark.usefixtures("gpu")
def test_a_model_that_is_loaded_stays_where_it_is_unless_another_device_is_named(digits: Dataset) -> None:
    there = moved(trained("vae", digits))
    assert loaded(there, "auto") is there
    here = loaded(there, "cpu")
    assert here.device == CPU
    assert here.sample(3).tolist() == there.sample(3).tolist()
    mixture = prior.with_mixture(here, digits, 2)
    copied = moved(mixture)
    assert copied.fitted is not None
    assert copied.fitted.sampler.decoder is copied.model, "one model, not two"


def test_the_stand_in_tells_what_a_gpu_would() -> None:
    with StandInGpu():
        there, here = torch.arange(3.0).to(DEVICE), torch.ones(3)
        assert (there + 1).cpu().tolist() == [1, 2, 3]
        assert (there * here.to(DEVICE)).sum().item() == 3
        assert there[here.bool()].device == DEVICE
        with pytest.raises(RuntimeError, match="tensors of two devices"):
            there + here
        with pytest.raises(RuntimeError, match="tensors of two devices"):
            here[there.long()]
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
