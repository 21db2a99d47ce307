"""The area under the ROC curve against scikit-learn's, and the scores of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from raygen.data import Dataset
from raygen.errors import DataError
from raygen.metrics import Evidence, _anomaly, anomaly_auroc
from raygen.models._base import ImageShape
from raygen.spec import TrainSpec
from raygen.training import checkpoint
from raygen.training.distributed import CPU
from raygen.training.loop import fit
from raygen.training.step import build_model
from tests.judged import noise


def untrained(model: str) -> Any:
    return build_model(TrainSpec.create(model, {"model.hidden": [16]}), ImageShape(1, 8, 8), CPU)


@given(scores=st.lists(st.integers(0, 9), min_size=2, max_size=60), data=st.data())
def test_the_area_is_scikit_learn_s(scores: list[int], data: st.DataObject) -> None:
    positive = data.draw(
        st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)).filter(lambda kinds: len(set(kinds)) == 2)
    )
    found = anomaly_auroc.area(torch.tensor(scores).double(), torch.tensor(positive))
    assert found == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_scores_that_are_not_finite_have_no_area() -> None:
    scores, positive = torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([True, False, False])
    assert anomaly_auroc.area(scores, positive) != anomaly_auroc.area(scores, positive)


@torch.no_grad()
def test_a_vae_scores_by_its_bound_and_an_ae_by_its_error(digits: Dataset) -> None:
    images = digits.train.images[:1203].float() / 255
    vae, ae = untrained("vae"), untrained("ae")
    noise = torch.randn(1203, vae.latent_dim, generator=torch.Generator().manual_seed(3))
    assert _anomaly.scores(vae, images, 3).tolist() == pytest.approx((-vae.elbo(images, noise)).tolist(), rel=1e-5)
    errors = (ae.decode(ae.encode(images)) - images).square().mean(dim=(1, 2, 3))
    assert _anomaly.scores(ae, images, 3).tolist() == pytest.approx(errors.tolist(), rel=1e-5)
    assert (_anomaly.score_name(vae), _anomaly.score_name(ae)) == ("negative_elbo_nats", "reconstruction_mse")


@torch.no_grad()
def test_a_model_of_zeros_knows_zeros(digits: Dataset, tmp_path: Path) -> None:
    assert digits.train.labels is not None
    assert digits.validation.labels is not None
    zeros = digits.only(0)
    settings = {"training.epochs": 40, "training.batch_size": 16, "model.hidden": [64], "model.latent_dim": 4}
    spec = TrainSpec.create("ae", {"optimizer.lr": 3e-3, **settings})
    path = tmp_path / "trial" / "checkpoint.safetensors"
    with torch.enable_grad():
        list(fit(spec, zeros, path))
    model = build_model(spec, ImageShape(1, 8, 8), CPU)
    model.load_state_dict(checkpoint.read_weights(path, prefix=checkpoint.BEST))
    held_out = digits.validation.images.float() / 255
    evidence = Evidence(images=held_out, seed=0, dataset=digits, labels=digits.validation.labels, normal_class=0)
    measured = anomaly_auroc.measure(model, evidence)
    truth = (digits.validation.labels != 0).numpy()
    assert measured.value == pytest.approx(roc_auc_score(truth, _anomaly.scores(model, held_out, 0).numpy()))
    assert measured.value > 0.9
    assert measured.details == {
        "score": "reconstruction_mse",
        "normal_class": 0,
        "normal_images": int((~truth).sum()),
        "anomalous_images": int(truth.sum()),
    }


@pytest.mark.parametrize(
    ("labels", "normal_class", "message"),
    [
        (None, 0, "noise has no labels, which val_anomaly_auroc needs"),
        ([0, 1, 2], None, "needs the class that is normal: add --normal-class 0"),
        ([0, 1, 2], 5, "--normal-class 5: .* theirs are 0, 1, 2"),
        ([1, 1, 1], 1, "--normal-class 1: .* theirs are 1"),
    ],
)
def test_what_it_cannot_do_without(labels: list[int] | None, normal_class: int | None, message: str) -> None:
    images = torch.rand(3, 1, 8, 8)
    evidence = Evidence(
        images=images,
        seed=0,
        dataset=noise(images),
        labels=None if labels is None else torch.tensor(labels),
        normal_class=normal_class,
    )
    with pytest.raises(DataError, match=message):
        anomaly_auroc.measure(untrained("ae"), evidence)
