from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raygen import models, space
from raygen.errors import SpaceError, SpecError
from raygen.optimizer_options import OPTIMIZERS
from raygen.spec import Resources, TrainSpec, TuneSpec, resources

ROOT = Path(__file__).parents[1]
every_model = pytest.mark.parametrize("model", models.names())


def refusal(model: str, settings: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        TrainSpec.create(model, settings)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


def spec_or_refusal(model: str, settings: dict[str, Any]) -> TrainSpec | SpecError:
    try:
        return TrainSpec.create(model, settings)
    except SpecError as error:
        return error


def assert_plain_json(spec: TrainSpec) -> None:
    """It says the same after a way through text, and through the JSON that a run folder holds."""
    for way in (spec.model_dump_json(), json.dumps(spec.model_dump(mode="json"))):
        back = type(spec).model_validate_json(way)
        assert back == spec
        assert type(back.model) is type(spec.model)
        assert back.with_settings({}) == spec


def literals(schema: Any) -> set[str]:
    """Every word that a field may have, from the JSON schema."""
    if isinstance(schema, dict):
        own = {word for word in schema.get("enum", []) if isinstance(word, str)}
        return own.union(*map(literals, schema.values()))
    return set().union(*map(literals, schema)) if isinstance(schema, list) else set()


WORDS = sorted(
    set().union(*(literals(models.find(name).Options.model_json_schema()) for name in models.names()))
    | literals(TrainSpec.model_json_schema())
)
ANYTHING = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-3, 2000),
    st.floats(-0.5, 3),
    st.sampled_from([None, True, False, float("inf"), float("nan"), "", "1e-3", {}, {"lr": 1}]),
    st.lists(st.integers(-1, 600), max_size=3),
    st.text(max_size=5),
)


def plausible(value: Any) -> st.SearchStrategy[Any]:
    """Values like the one that a field has by default."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(1, 1000)
    if isinstance(value, float):
        return st.floats(0.01, 0.5)
    if isinstance(value, tuple):
        return st.lists(st.integers(1, 600), max_size=3)
    return st.just(value) | st.sampled_from(WORDS)


def value_at(spec: TrainSpec, path: str) -> Any:
    value: Any = spec
    for part in path.split("."):
        value = getattr(value, part)
    return value


@every_model
@given(data=st.data())
@settings(max_examples=50)
def test_any_setting_makes_a_spec_that_is_plain_json_or_is_refused_in_one_line(
    model: str, data: st.DataObject
) -> None:
    default = TrainSpec.create(model, {})
    paths = st.sampled_from([path for path in TrainSpec.paths(model) if path != "model.name"])
    settings = {
        path: data.draw(plausible(value_at(default, path)) | ANYTHING)
        for path in data.draw(st.lists(paths, max_size=3))
    }
    outcome = spec_or_refusal(model, settings)
    event(type(outcome).__name__)
    if isinstance(outcome, SpecError):
        assert str(outcome)
        assert "\n" not in str(outcome)
    else:
        assert_plain_json(outcome)


@pytest.mark.parametrize("name", space.names())
def test_a_search_is_plain_json(name: str) -> None:
    assert_plain_json(TuneSpec.search_over(name, space.read(name).model, {"search.trials": 5, "seed": 3}))


@every_model
def test_every_field_is_described(model: str) -> None:
    def undescribed(schema: dict[str, Any]) -> list[str]:
        return [name for name, field in schema["properties"].items() if not field.keys() & {"description", "$ref"}]

    schema = TuneSpec.model_json_schema()
    parts = {name: part for name, part in schema["$defs"].items() if name.endswith("Options") or name == "Resources"}
    assert len(parts) >= 5
    for part in [*parts.values(), *(optimizer.model_json_schema() for optimizer in OPTIMIZERS.values())]:
        assert [name for name in undescribed(part) if name not in ("name", "space")] == []


@every_model
def test_paths_are_those_that_can_be_set(model: str) -> None:
    spec = TrainSpec.create(model, {})
    for path in TrainSpec.paths(model):
        assert spec.with_settings({path: value_at(spec, path)}) == spec


# Unknown and impossible values


@pytest.mark.parametrize(
    ("model", "wrong", "meant"),
    [
        ("vae", "model.latentdim", "model.latent_dim"),
        ("vae", "optimizer.learning_rate", "optimizer.lr"),
        ("vae", "optimiser.lr", "optimizer.lr"),
        ("vae", "lr", "optimizer.lr"),
        ("vae", "batch_size", "training.batch_size"),
        ("vae", "training.epoch", "training.epochs"),
        ("vae", "evaluation.metric", "evaluation.metrics"),
        ("gan", "model.discriminator_step", "model.discriminator_steps"),
        ("ae", "resources.gpu", "resources.gpus"),
        ("ae", "sede", "seed"),
    ],
)
def test_an_unknown_field_gets_the_nearest_name(model: str, wrong: str, meant: str) -> None:
    message = refusal(model, {wrong: 3})
    assert message.startswith("there is no field ")
    assert message.endswith(f"; did you mean {meant!r}?")


def test_a_field_of_another_model_is_unknown() -> None:
    assert "there is no field 'model.beta'" in refusal("ae", {"model.beta": 2})


def test_a_field_like_no_other() -> None:
    assert refusal("ae", {"zzz": 3}) == "there is no field 'zzz'; `--dry-run` prints every field"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("optimizer.lr", 0, "greater than 0, got 0"),
        ("optimizer.lr", "fast", "valid number"),
        ("optimizer.lr", float("inf"), "finite number"),
        ("optimizer.lr", float("nan"), "got nan"),
        ("optimizer.beta2", 1, "less than 1, got 1"),
        ("optimizer.clip_norm", -1, "greater than 0, got -1"),
        ("optimizer.schedule", "linear", "'constant' or 'cosine', got 'linear'"),
        ("training.batch_size", 12.5, "valid integer"),
        ("training.epochs", 0, "greater than or equal to 1, got 0"),
        ("training.precision", "fp16", "'fp32' or 'bf16', got 'fp16'"),
        ("evaluation.images", 1, "greater than or equal to 2, got 1"),
        ("model.latent_dim", 0, "greater than or equal to 1, got 0"),
        ("model.latent_dim", 10**9, "less than or equal to 65536"),
        ("model.hidden", [64, 0], "greater than or equal to 1, got 0"),
        ("model.hidden", "wide", "got 'wide'"),
        ("model.decoder_hidden", "wide", "got 'wide'"),
        ("model.activation", "rely", "'silu' or 'tanh', got 'rely'"),
        ("model.arch", "transformer", "'mlp' or 'conv', got 'transformer'"),
        ("model.sigma", float("inf"), "finite number"),
        ("data.image_size", 4, "greater than or equal to 8, got 4"),
        ("seed", -1, "greater than or equal to 0, got -1"),
        ("optimizer", 3, "OptimizerOptions, got 3"),
        ("optimizer.name", "adm", "'sgd' or 'adadelta', got 'adm'"),
        ("optimizer.name", [1], "'sgd' or 'adadelta', got [1]"),
    ],
)
def test_an_impossible_value_is_refused_with_field_and_range(path: str, value: Any, said: str) -> None:
    message = refusal("vae", {path: value})
    assert message.startswith(f"{path}: ")
    assert said in message


def test_convolutions_have_no_decoder_of_their_own() -> None:
    refused = (
        "model.decoder_hidden: convolutions go backwards as they came; leave it out, or set model.arch=mlp, got [64]"
    )
    assert refusal("gan", {"model.decoder_hidden": [64]}) == refused
    spec = TrainSpec.create("gan", {"model.arch": "mlp", "model.decoder_hidden": 64})
    assert spec.model.decoder_hidden == (64,)
    with pytest.raises(SpecError, match=r"model\.decoder_hidden"):
        spec.with_settings({"model.arch": "conv"})


@pytest.mark.parametrize(
    ("model", "path"),
    [("vae", "discriminator_activation"), ("vae", "prior"), ("vaegan", "prior"), ("gan", "latent_activation")],
)
def test_forms_that_a_family_does_not_have(model: str, path: str) -> None:
    assert f"there is no field 'model.{path}'" in refusal(model, {f"model.{path}": "tanh"})


OWN_FIELDS = {
    "adam": ["beta1", "beta2"],
    "adamw": ["beta1", "beta2", "weight_decay"],
    "rmsprop": ["alpha", "momentum"],
    "sgd": ["momentum", "nesterov", "weight_decay"],
    "adadelta": ["rho", "eps"],
}
SHARED_FIELDS = ["lr", "clip_norm", "schedule", "warmup_fraction"]


@pytest.mark.parametrize("name", OWN_FIELDS)
def test_an_optimizer_takes_its_own_fields_and_names_them_when_it_gets_another_s(name: str) -> None:
    spec = TrainSpec.create("ae", {"optimizer.name": name})
    assert_plain_json(spec)
    assert list(spec.model_dump()["optimizer"]) == ["name", *SHARED_FIELDS, *OWN_FIELDS[name]]
    for path in TrainSpec.paths("ae", type(spec.optimizer)):
        assert spec.with_settings({path: value_at(spec, path)}) == spec
    for field in set().union(*OWN_FIELDS.values()) - set(OWN_FIELDS[name]):
        assert refusal("gan", {"optimizer.name": name, f"optimizer.{field}": 0.5}) == (
            f"optimizer.{field}: {name} has no {field}; it has {', '.join([*SHARED_FIELDS, *OWN_FIELDS[name]])}"
        )


def test_adam_is_the_default_also_of_documents_that_name_no_optimizer() -> None:
    spec = TrainSpec.create("gan", {"optimizer.beta2": 0.9})
    document = spec.model_dump(mode="json")
    assert document["optimizer"].pop("name") == "adam"
    assert TrainSpec.model_validate(document) == spec


def test_another_optimizer_keeps_what_both_have() -> None:
    """A family's recipe, or the spec that a search's trials share, may set what another optimizer does not have."""
    adamw = TrainSpec.create("gan", {"optimizer.name": "adamw", "optimizer.lr": 0.5})
    assert adamw.model_dump(include={"optimizer": {"beta1", "lr"}})["optimizer"] == {"beta1": 0.5, "lr": 0.5}
    sgd = adamw.with_settings({"optimizer.name": "sgd", "optimizer.momentum": 0.3})
    assert (sgd.optimizer.lr, sgd.model_dump()["optimizer"]["momentum"]) == (0.5, 0.3)
    assert sgd.with_settings({"optimizer.name": "adam"}).model_dump()["optimizer"]["beta1"] == 0.5, "the recipe's"
    vary = {"optimizer.name": "adam,sgd,adadelta", "optimizer.lr": "1e-3..1e-1"}
    search = TuneSpec.search_over(None, "gan", {}, vary=vary)
    trial = search.trial_spec({"optimizer.name": "sgd", "optimizer.lr": 0.1})
    assert trial.model_dump()["optimizer"].keys() == {"name", *SHARED_FIELDS, *OWN_FIELDS["sgd"]}


def test_a_search_varies_what_its_optimizer_has() -> None:
    settings = {"optimizer.name": "sgd"}
    vary = {"optimizer.momentum": "0.5,0.9"}
    assert TuneSpec.search_over(None, "ae", settings, vary=vary).search.space.parameters.keys() == vary.keys()
    with pytest.raises(SpaceError, match=r"optimizer\.momentum: adam has no momentum; it has lr"):
        TuneSpec.search_over(None, "ae", {}, vary=vary)


def test_nesterov_needs_a_momentum() -> None:
    settings = {"optimizer.name": "sgd", "optimizer.nesterov": True}
    assert "set optimizer.momentum too, such as 0.9" in refusal("ae", settings)
    assert TrainSpec.create("ae", {**settings, "optimizer.momentum": 0.9})


def test_the_first_of_several_faults_is_told_and_the_others_counted() -> None:
    assert refusal("vae", {"optimizer.lr": 0, "training.epochs": 0, "seed": -1}).endswith("(and 2 more)")


@pytest.mark.parametrize("settings", [{"model": 3}, {"model": {}}, {"optimizer": {"lr": 1}, "optimizer.lr.x": 2}])
def test_the_whole_of_what_is_set_in_part(settings: dict[str, Any]) -> None:
    assert "is set as a whole and in part" in refusal("vae", settings)


def test_an_unknown_model_gets_the_nearest_name() -> None:
    assert refusal("vea", {}) == "there is no model 'vea'; did you mean 'vae'?"


def test_metrics_must_suit_the_model() -> None:
    refused = "ae cannot be judged by val_elbo; it can by val_compression, val_mse, val_psnr, val_ssim"
    assert refusal("ae", {"evaluation.objective": "val_elbo"}) == refused
    assert "ae cannot be judged by val_frechet" in refusal("ae", {"evaluation.metrics": ["val_mse", "val_frechet"]})
    assert "did you mean 'val_elbo'?" in refusal("vae", {"evaluation.objective": "elbo"})
    refused = refusal("ae", {"evaluation.metrics": ["val_anomaly_auroc"]})
    assert refused.startswith("val_anomaly_auroc needs labels, a classifier or the training images, so no training")


def test_compiling_and_differentiating_twice_do_not_go_together() -> None:
    assert "wgan-gp" in refusal("gan", {"model.loss": "wgan-gp", "training.compile": "on"})
    assert TrainSpec.create("gan", {"training.compile": "on"}).training.compile == "on"
    assert TrainSpec.create("gan", {"model.loss": "wgan-gp"}).training.compile == "auto", "it decides by itself"


# What is set, and what follows from the model


def test_objectives() -> None:
    objectives = {model: TrainSpec.create(model, {}).evaluation.objective for model in ("ae", "vae", "gan")}
    assert objectives == {"ae": "val_mse", "vae": "val_elbo", "gan": "val_frechet"}


def test_a_gan_starts_from_its_own_momentum_and_moving_average() -> None:
    gan, vae = TrainSpec.create("gan", {}), TrainSpec.create("vae", {})
    assert (gan.optimizer.beta1, gan.training.ema_half_life_images) == (0.5, 10_000)
    assert (vae.optimizer.beta1, vae.training.ema_half_life_images) == (0.9, 0)
    assert (gan.optimizer.lr, gan.optimizer.beta2) == (vae.optimizer.lr, vae.optimizer.beta2)


def test_what_the_person_sets_wins_over_the_recipe() -> None:
    spec = TrainSpec.create("gan", {"optimizer.lr": 1e-3, "training.ema_half_life_images": 0})
    assert (spec.optimizer.lr, spec.training.ema_half_life_images) == (1e-3, 0)
    assert spec.optimizer.beta1 == 0.5, "the rest of the recipe stays"
    assert spec.with_settings({"seed": 1}).optimizer.lr == 1e-3


def test_with_settings_changes_what_is_set_alone() -> None:
    spec = TrainSpec.create("vae", {"optimizer.lr": 0.5, "model.latent_dim": 3})
    changed = spec.with_settings({"model.latent_dim": 4, "training.epochs": 7})
    assert (changed.model.latent_dim, changed.training.epochs, changed.optimizer.lr) == (4, 7, 0.5)
    assert spec.model.latent_dim == 3
    with pytest.raises(SpecError, match=r"training\.epochs: "):
        spec.with_settings({"training.epochs": 0})


@pytest.mark.parametrize(
    ("written", "sizes"), [(512, (512,)), ([512], (512,)), ([128, 64], (128, 64)), ([], ()), ("512", None)]
)
def test_layer_sizes_are_a_list_or_one_number(written: Any, sizes: tuple[int, ...] | None) -> None:
    if sizes is None:
        assert refusal("vae", {"model.hidden": written}).startswith("model.hidden: ")
    else:
        assert TrainSpec.create("vae", {"model.hidden": written}).model.hidden == sizes


def test_specs_are_frozen() -> None:
    spec = TrainSpec.create("vae", {})
    with pytest.raises(ValidationError):
        spec.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        spec.optimizer.lr = 3  # type: ignore[misc]


def test_metrics_are_the_objective_first_and_each_once() -> None:
    spec = TrainSpec.create("vae", {"evaluation.metrics": ["val_mse", "val_elbo", "val_mse"]})
    assert spec.evaluation.all_metrics == ("val_elbo", "val_mse")


def test_resources_are_known_before_the_rest() -> None:
    assert resources({"resources.gpus": 2, "no.such.field": 1}) == Resources(gpus=2)
    assert resources({}) == Resources()
    with pytest.raises(SpecError, match="gpus"):
        resources({"resources.gpus": -1})
    with pytest.raises(SpecError, match="did you mean 'gpus'"):
        resources({"resources.gpsu": 1})


@pytest.mark.parametrize(
    ("written", "fewest", "most"),
    [(3, None, 3), ("3", None, 3), ("1-4", 1, 4), ([1, 4], 1, 4), ("2-2", None, 2), (None, None, None)],
)
def test_workers_are_a_number_or_a_range(written: Any, fewest: int | None, most: int | None) -> None:
    spec = TrainSpec.create("ae", {"resources.workers": written})
    assert (spec.resources.elastic_from, spec.resources.most_workers) == (fewest, most)
    assert_plain_json(spec)
    assert resources({"resources.workers": written}) == spec.resources


@pytest.mark.parametrize("written", ["4-1", "0", "0-2", "a-b", "1-2-3", "1-", "-3", "", "1.5", 0, -1, [1], [4, 1], {}])
def test_workers_that_are_neither_are_refused_in_one_line(written: Any) -> None:
    message = refusal("ae", {"resources.workers": written})
    assert message.startswith("resources.workers")
    with pytest.raises(SpecError) as caught:
        resources({"resources.workers": written})
    assert "\n" not in str(caught.value)


# What the command line waits for


def test_catalogues_and_the_api_import_neither_torch_nor_ray() -> None:
    program = """
import importlib, sys

def check(what):
    loaded = [name for name in ("torch", "ray") if name in sys.modules]
    assert not loaded, f"{what} imports {loaded}"

for name in ("raygen", "raygen.errors", "raygen.models", "raygen.metrics", "raygen.data", "raygen.space",
             "raygen.spec", "raygen.plan", "raygen.record.run", "raygen.api"):
    importlib.import_module(name)
    check(name)
from raygen import data, metrics, models, space
for listed in (models, metrics, data, space):
    assert listed.names()
    check(f"{listed.__name__}.names()")
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.parametrize(("typed", "share"), [("auto", "auto"), ("0.5", 0.5), (2, 2.0), (None, None)])
def test_a_trials_gpus_are_a_number_or_measured(typed: Any, share: float | str | None) -> None:
    assert resources({"resources.gpus_per_trial": typed}).gpus_per_trial == share


@pytest.mark.parametrize("typed", ["0", "-1", "nan", "inf", "all", "", [1], True])
def test_a_trials_gpus_are_nothing_else(typed: Any) -> None:
    with pytest.raises(
        SpecError, match=r"gpus_per_trial: .*write a number of GPUs above 0, such as 0.5 or 2, or auto"
    ):
        resources({"resources.gpus_per_trial": typed})
