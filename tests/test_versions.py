"""What earlier versions wrote is read as what it meant then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raygen import data
from raygen.data import DataOptions, Dataset
from raygen.errors import SpecError
from raygen.spec import TrainSpec, TuneSpec
from raygen.training.loop import fit
from raygen.versions import VERSION

SPACE = {
    "origin": "vae",
    "model": "vae",
    "objective": "val_elbo",
    "direction": "max",
    "parameters": {"optimizer.lr": {"loguniform": [0.0001, 0.01]}},
}


def written_before(model: str = "vae", **parts: Any) -> dict[str, Any]:
    """A spec's document as version 0.1.0 wrote it before there were versions, in part."""
    return {
        "model": {"name": model, "arch": "mlp", "hidden": [16]},
        "data": {
            "source": "digits",
            "root": None,
            "image_size": None,
            "held_out_fraction": 0.25,
            "normal_class": None,
        },
        "training": {"epochs": 1, "batch_size": 64},
        "seed": 3,
        **parts,
    }


def test_a_new_spec_says_its_version_and_keeps_it() -> None:
    spec = TrainSpec.create("vae", {})
    assert spec.version == VERSION == 4
    assert TrainSpec.model_validate_json(spec.model_dump_json()).version == VERSION
    assert TuneSpec.search_over("vae", "vae", {}).trial_spec({"optimizer.lr": 1e-3}).version == VERSION
    for changed in (lambda: TrainSpec.create("vae", {"version": 1}), lambda: spec.with_settings({"version": 1})):
        with pytest.raises(SpecError, match="version: it says which Raygen made the spec, and is not set"):
            changed()


def test_a_document_without_a_version_is_of_version_1_and_stays_so() -> None:
    spec = TrainSpec.model_validate(written_before())
    assert spec.version == 1
    assert (spec.data.validation_fraction, spec.data.test_fraction) == (0.25, 0)
    again = TrainSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.with_settings({"data.normal_class": 1}).version == 1
    search = TuneSpec.model_validate(written_before(search={"space": SPACE, "replicates": 3}))
    assert search.search.replicates == 2, "of the three seeds in all one was the winner's own"


def test_the_parts_of_an_older_run_are_what_they_were() -> None:
    """The training images of then, the held-out ones as validation images, and none to test on."""
    older = data.load(TrainSpec.model_validate(written_before()).data)
    newer = data.load(DataOptions(validation_fraction=0.25, test_fraction=0.1))
    assert older.test is None
    assert (len(older.train.images), len(older.validation.images)) == (1797 - 449, 449)
    assert newer.test is not None
    together = torch.cat([newer.train.images, newer.validation.images, newer.test.images])
    assert torch.equal(torch.cat([older.train.images, older.validation.images]), together)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "wgan-gp"}, r"\(wgan-gp\).*`raygen train gan --set model.loss=wgan-gp`"),
        ({"gradient_penalty": 1.0}, r"\(gradient_penalty\).*--set model.gradient_penalty=…`"),
        ({"r1": 10.0}, r"\(r1\).*--set model.r1=…` \(r1 needs 4 times the weight it had\)"),
    ],
)
def test_an_older_spec_with_a_gradient_penalty_is_read_but_not_trained(
    options: dict[str, Any], said: str, digits: Dataset, tmp_path: Any
) -> None:
    document = written_before("gan")
    document["model"] |= options
    spec = TrainSpec.model_validate(document)
    with pytest.raises(SpecError, match=said) as caught:
        next(fit(spec, digits, tmp_path / "checkpoint"))
    assert "\n" not in str(caught.value)
    settings = {f"model.{name}": value for name, value in document["model"].items() if name != "name"}
    TrainSpec.create("gan", settings).check_trainable()


def test_an_older_spec_without_one_is_trained(digits: Dataset, tmp_path: Any) -> None:
    assert next(fit(TrainSpec.model_validate(written_before("gan")), digits, tmp_path / "checkpoint")).epoch == 1


def test_the_field_that_is_no_more_names_those_in_its_place() -> None:
    with pytest.raises(SpecError, match=r"no field 'data.held_out_fraction' any more.*data.validation_fraction=0.1"):
        TrainSpec.create("vae", {"data.held_out_fraction": 0.2})


@pytest.mark.parametrize("version", [None, 2])
def test_noise_on_an_autoencoder_s_inputs_is_read_as_corruption_but_not_trained_on(
    version: int | None, digits: Dataset, tmp_path: Any
) -> None:
    """Its epochs were judged on clean inputs then."""
    document = written_before("ae") if version is None else {"version": version, "data": {"source": "digits"}}
    document["model"] = {"name": "ae", "hidden": [16], "noise_std": 0.2}
    spec = TrainSpec.model_validate(document)
    assert (spec.version, spec.data.corruption, spec.data.corruption_std) == (version or 1, "noise", 0.2)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(
        SpecError, match=r"`raygen train ae --set data.corruption=noise .*corruption_std=0.2`"
    ) as caught:
        next(fit(spec, digits, tmp_path / "checkpoint"))
    assert "\n" not in str(caught.value)


def test_an_autoencoder_of_then_without_noise_goes_on(digits: Dataset, tmp_path: Any) -> None:
    document = written_before("ae")
    document["model"]["noise_std"] = 0.0
    spec = TrainSpec.model_validate(document)
    assert spec.data.corruption is None
    assert next(fit(spec, digits, tmp_path / "checkpoint")).epoch == 1


def test_noise_as_a_model_s_option_names_what_is_in_its_place() -> None:
    with pytest.raises(SpecError, match=r"no field 'model.noise_std' any more.*--set data.corruption=noise"):
        TrainSpec.create("ae", {"model.noise_std": 0.2})
