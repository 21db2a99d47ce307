from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from raygen import models, space
from raygen.errors import SpaceError, SpecError
from raygen.space import Choice, Distribution, IntUniform, LogUniform, Quantised, Uniform
from raygen.spec import TrainSpec, TuneSpec

HEAD = 'model = "vae"\nobjective = "val_elbo"\ndirection = "max"\n[parameters]\n'
every_bundled = pytest.mark.parametrize("name", space.names())


def search(path: Path, text: str, **settings: Any) -> TuneSpec:
    path.write_text(text)
    return TuneSpec.search_over(str(path), "vae", settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def refusal(path: Path, text: str) -> str:
    """The one line with which a space is refused; it always names the file first."""
    with pytest.raises(SpaceError) as caught:
        search(path, text)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message.removeprefix(f"{path}: ")


# Those that come with Raygen


def test_every_model_has_one_and_a_wide_one() -> None:
    assert set(space.names()) == {name + width for name in models.names() for width in ("", "-wide")}
    assert all(description.endswith(".") for description in space.names().values())


@every_bundled
def test_every_key_exists_and_every_edge_is_possible(name: str) -> None:
    found = space.read(name)
    assert set(found.parameters) <= set(TrainSpec.paths(found.model))
    spec = TuneSpec.search_over(name, found.model, {})
    for key, distribution in found.parameters.items():
        for value in distribution.edges():
            assert isinstance(spec.trial_spec({key: value}), TrainSpec)


@pytest.mark.parametrize("model", models.names())
def test_rate_batch_size_and_latent_dimension_vary_by_default_and_more_in_the_wide_space(model: str) -> None:
    narrow, wide = space.read(model).parameters, space.read(f"{model}-wide").parameters
    assert set(narrow) == {"optimizer.lr", "training.batch_size", "model.latent_dim"}
    assert narrow.items() < wide.items()


@every_bundled
def test_they_are_read_by_their_file_as_well(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(space.text(name))
    assert space.read(str(copy)).parameters == space.read(name).parameters
    assert space.read(str(copy)).origin == str(copy)


# What a search makes of one


def test_every_form_is_read(path: Path) -> None:
    spec = search(
        path,
        HEAD
        + """
"optimizer.lr" = { loguniform = [1e-4, 1e-2] }
"optimizer.beta1" = { uniform = [0, 0.9] }
"training.batch_size" = { quantised = [32, 256], step = 32 }
"model.latent_dim" = { int = [2, 64], log = true }
"model.hidden" = { choice = [400, [512, 256], []] }
"optimizer.schedule" = { choice = ["constant", "cosine"] }
""",
    )
    parameters = spec.search.space.parameters
    assert parameters["optimizer.lr"] == LogUniform(loguniform=(1e-4, 1e-2))
    assert parameters["optimizer.beta1"] == Uniform(uniform=(0, 0.9))
    assert parameters["training.batch_size"] == Quantised(quantised=(32, 256), step=32)
    assert parameters["model.latent_dim"] == IntUniform(int=(2, 64), log=True)
    assert parameters["model.hidden"] == Choice(choice=(400, (512, 256), ()))
    trial = spec.trial_spec({"model.hidden": [512, 256], "optimizer.lr": 0.005, "training.batch_size": 64.0})
    assert (trial.model.hidden, trial.optimizer.lr, trial.training.batch_size) == ((512, 256), 0.005, 64)
    assert not isinstance(trial, TuneSpec)


def test_trials_share_what_is_set_and_judge_by_the_space_s_objective(path: Path) -> None:
    text = HEAD + '"optimizer.lr" = { uniform = [0.1, 0.2] }'
    spec = search(path, text, **{"model.latent_dim": 5, "training.epochs": 2})
    trial = spec.trial_spec({"optimizer.lr": 0.15})
    assert (trial.model.latent_dim, trial.training.epochs, trial.optimizer.lr) == (5, 2, 0.15)
    assert trial.evaluation.objective == "val_elbo"
    other = search(path, text, **{"evaluation.objective": "val_mse"})
    assert other.trial_spec({}).evaluation.objective == "val_mse"


def test_the_smallest_and_largest_batch_are_those_of_the_space(path: Path) -> None:
    assert search(path, HEAD + '"training.batch_size" = { choice = [64, 16, 32] }').batch_sizes() == (16, 64)
    quantised = '"training.batch_size" = { quantised = [8, 64], step = 100 }'
    assert search(path, HEAD + quantised).batch_sizes() == (8, 64)
    assert search(path, HEAD + '"optimizer.lr" = { uniform = [0.1, 0.2] }').batch_sizes() == (128, 128)


def test_what_varies_cannot_be_set_too(path: Path) -> None:
    with pytest.raises(SpecError, match=r"optimizer\.lr is what the space .*mine\.toml' varies"):
        search(path, HEAD + '"optimizer.lr" = { uniform = [0.1, 0.2] }', **{"optimizer.lr": 0.1})


@given(
    bounds=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    form=st.sampled_from(["uniform", "loguniform", "int"]),
)
def test_edges_lie_within_the_range(bounds: tuple[int, int], form: str) -> None:
    low, high = min(bounds), max(bounds) + 1
    distribution: Any = TypeAdapter(Distribution).validate_python({form: [low, high]})
    edges = distribution.edges()
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (low, high)


# What is refused


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optimizer.learning_rate", "did you mean 'optimizer.lr'?"),
        ("optimizer.lrr", "did you mean 'optimizer.lr'?"),
        ("model.latentdim", "did you mean 'model.latent_dim'?"),
        ("lr", "did you mean 'optimizer.lr'?"),
        ("model.spectral_norm", "a search cannot vary this"),  # of another model
        ("model.name", "a search cannot vary this"),
        ("seed", "a search cannot vary this"),
        ("data.source", "a search cannot vary this"),
        ("evaluation.seed", "a search cannot vary this"),
    ],
)
def test_an_unknown_key(key: str, nearest: str, path: Path) -> None:
    message = refusal(path, f'{HEAD}"{key}" = {{ int = [1, 2] }}')
    assert message.startswith(f"{key}: ")
    assert nearest in message


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("optimizer.lr", "{ uniform = [0, 0.1] }"),
        ("optimizer.lr", "{ uniform = [0.2, 0.1] }"),
        ("optimizer.lr", "{ uniform = [0.1, 0.1] }"),
        ("optimizer.lr", "{ uniform = [0.1, inf] }"),
        ("optimizer.lr", "{ uniform = [nan, 1.0] }"),
        ("optimizer.lr", "{ uniform = [0.1] }"),
        ("optimizer.lr", "{ uniform = 0.1 }"),
        ("optimizer.lr", '{ uniform = ["low", "high"] }'),
        ("optimizer.lr", "{ loguniform = [0, 1] }"),
        ("optimizer.lr", "{ loguniform = [-1, 1] }"),
        ("optimizer.beta1", "{ uniform = [0, 1] }"),
        ("training.batch_size", "{ int = [0, 5] }"),
        ("training.batch_size", "{ choice = [32, 0] }"),
        ("training.batch_size", "{ uniform = [32, 64] }"),
        ("training.batch_size", "{ loguniform = [32, 64] }"),
        ("training.batch_size", "{ quantised = [32, 64], step = 0.5 }"),
        ("model.latent_dim", "{ int = [0, 8], log = true }"),
        ("model.latent_dim", "{ int = [1.5, 8] }"),
        ("model.latent_dim", "{ quantised = [2, 8], step = 0 }"),
        ("model.hidden", "{ choice = [[400], [0]] }"),
        ("model.likelihood", '{ choice = ["bernoulli", "poisson"] }'),
        ("model.likelihood", "{ choice = [] }"),
    ],
)
def test_an_impossible_range(key: str, form: str, path: Path) -> None:
    assert key in refusal(path, f'{HEAD}"{key}" = {form}')


@pytest.mark.parametrize("form", ["{ normal = [0, 1] }", "{}", "3", "[1, 2]", '"uniform"'])
def test_an_unknown_form_gets_the_known_ones(form: str, path: Path) -> None:
    message = refusal(path, f'{HEAD}"optimizer.lr" = {form}')
    assert message == "parameters.optimizer.lr: needs one of the forms uniform, loguniform, quantised, int, choice"


def test_a_word_too_many_in_a_form(path: Path) -> None:
    message = refusal(path, HEAD + '"optimizer.lr" = { uniform = [0.1, 0.2], log = true }')
    assert message.startswith("parameters.optimizer.lr.log: ")


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"model.pack": "{ choice = [2, 3] }"}, "model.pack: training.batch_size: 128 is no multiple of the 3"),
        (
            {"model.pack": "{ choice = [2, 4] }", "training.batch_size": "{ choice = [32, 66] }"},
            "model.pack with training.batch_size: training.batch_size: 66 is no multiple of the 4",
        ),
        (
            {"model.pack": "{ choice = [1, 2] }", "training.batch_size": "{ int = [32, 64] }"},
            "model.pack with training.batch_size: training.batch_size: 33 is no multiple of the 2",
        ),
        (
            {"training.compile": "{ choice = ['on', 'off'] }", "model.r1": "{ choice = [0.0, 1.0] }"},
            "training.compile with model.r1: torch.compile cannot differentiate twice",
        ),
    ],
)
def test_values_that_are_impossible_together(ranges: dict[str, str], said: str, path: Path) -> None:
    """Found before the search begins; a trial would find them in its midst."""
    lines = [f'"{key}" = {form}' for key, form in ranges.items()]
    path.write_text("\n".join(['model = "gan"\nobjective = "val_frechet"\ndirection = "min"\n[parameters]', *lines]))
    with pytest.raises(SpaceError) as caught:
        TuneSpec.search_over(str(path), "gan", {})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"vae"', '"ae"', "model: this space is for 'ae', not 'vae'"),
        ('"vae"', '"gan"', "model: this space is for 'gan', not 'vae'"),
        ('"val_elbo"', '"val_elb"', "objective: there is no metric 'val_elb'; did you mean 'val_elbo'?"),
        ('"max"', '"min"', "direction: val_elbo is better at its max: 'max'"),
        ('"max"', '"up"', "direction: "),
        ("direction", "directoin", "direct"),
        ("[parameters]", "[parameter]", "parameter"),
    ],
)
def test_what_the_space_is_for(old: str, new: str, said: str, path: Path) -> None:
    assert said in refusal(path, (HEAD + '"optimizer.lr" = { uniform = [0.1, 0.2] }').replace(old, new))


@pytest.mark.parametrize(("model", "bundled"), [("vae", "ae"), ("vae", "gan"), ("gan", "ae"), ("ae", "vae")])
def test_a_bundled_space_of_another_model(model: str, bundled: str) -> None:
    with pytest.raises(SpaceError, match=f"^{bundled}: model: this space is for '{bundled}', not '{model}'"):
        TuneSpec.search_over(bundled, model, {})


def test_an_objective_that_cannot_judge_the_model(path: Path) -> None:
    path.write_text('model = "ae"\nobjective = "val_elbo"\ndirection = "max"\n[parameters]\n"seed" = { int = [1, 2] }')
    with pytest.raises(SpaceError, match="objective: ae cannot be judged by val_elbo"):
        TuneSpec.search_over(str(path), "ae", {})


@pytest.mark.parametrize("missing", ["model", "objective", "direction"])
def test_a_key_that_is_missing(missing: str, path: Path) -> None:
    lines = [line for line in HEAD.splitlines() if not line.startswith(missing)]
    assert refusal(path, "\n".join([*lines, '"optimizer.lr" = { uniform = [0.1, 0.2] }'])).startswith(f"{missing}: ")


def test_nothing_that_varies(path: Path) -> None:
    assert refusal(path, HEAD).startswith("parameters: ")


def test_bad_toml(path: Path) -> None:
    message = refusal(path, "model = vae")
    assert message.startswith("not valid TOML: ")
    assert "line 1" in message


def test_a_file_that_is_no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpaceError, match=f"^{path}: cannot be read as a search space"):
        space.read(str(path))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=f"^{tmp_path}: cannot be read as a search space"):
        space.read(str(tmp_path))


def test_a_missing_file(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.toml")
    with pytest.raises(SpaceError, match=f"no search space file '{missing}'"):
        space.read(missing)
    with pytest.raises(SpaceError, match="no search space file 'vea'; did you mean 'vae'"):
        space.read("vea")
    with pytest.raises(SpaceError, match="`raygen spaces` lists"):
        space.read("transformer")


# What is typed at the command line


def varied(**texts: str) -> dict[str, Any]:
    paths = {key.replace("__", "."): text for key, text in texts.items()}
    return TuneSpec.search_over(None, "vae", {}, vary=paths).search.space.parameters


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("4,8,16", Choice(choice=(4, 8, 16))),
        ("8..64", IntUniform(int=(8, 64))),
        ("2..64", IntUniform(int=(2, 64), log=True)),
    ],
)
def test_vary_lists_values_or_names_a_range(text: str, distribution: Distribution) -> None:
    assert varied(model__latent_dim=text) == {"model.latent_dim": distribution}


def test_a_wide_range_is_logarithmic() -> None:
    found = varied(optimizer__lr="1e-4..1e-2", optimizer__beta1="0.5..0.9")
    assert found == {
        "optimizer.lr": LogUniform(loguniform=(1e-4, 1e-2)),
        "optimizer.beta1": Uniform(uniform=(0.5, 0.9)),
    }


def test_values_may_be_words_and_lists() -> None:
    found = varied(optimizer__schedule="constant,cosine", model__hidden="[400],[512,256]")
    assert found["optimizer.schedule"] == Choice(choice=("constant", "cosine"))
    assert found["model.hidden"] == Choice(choice=((400,), (512, 256)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4", "list two values or more; --set model.latent_dim=4 fixes one"),
        ("4..x", "a range is two numbers"),
        ("8..4", "the first bound must be below the second"),
        ("4,-1", "Input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_varied_so_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SpaceError, match=r"^--vary") as caught:
        varied(model__latent_dim=text)
    assert reason.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_a_grid_needs_values() -> None:
    options = {"search.sampler": "grid"}
    with pytest.raises(SpaceError, match=r"optimizer\.lr: a grid needs the values to try"):
        TuneSpec.search_over("vae", "vae", options)
    vary = {"model.latent_dim": "4,8", "training.batch_size": "32,64,128"}
    assert TuneSpec.search_over(None, "vae", options, vary=vary).search.trials == 6
    with pytest.raises(SpecError, match="a grid runs all of its 6 configurations; leave out --trials"):
        TuneSpec.search_over(None, "vae", {**options, "search.trials": 4}, vary=vary)


def test_a_space_and_vary_are_two_ways() -> None:
    with pytest.raises(SpecError, match="type one of them"):
        TuneSpec.search_over("vae", "vae", {}, vary={"model.latent_dim": "4,8"})
