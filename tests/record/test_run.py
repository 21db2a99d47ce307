"""A run by its name: made, found, asked for something, removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raygen.errors import RunError, StorageError
from raygen.record import ranking
from raygen.record.attempt import Attempt
from raygen.record.run import Run
from raygen.spec import TrainSpec, TuneSpec
from raygen.storage import Storage, default_storage
from tests.searches import PLAN, add_trial, begin, create


def make(storage: Storage, model: str = "ae", *, search: bool = False, name: str | None = None, **chosen: Any) -> Run:
    spec = TuneSpec.search_over(model, model, chosen) if search else TrainSpec.create(model, chosen)
    return create(storage, spec, name=name)


# Making, naming and opening


def test_a_new_run_says_what_was_asked(place: Storage) -> None:
    made = make(place, "vae", **{"optimizer.lr": 0.5, "seed": 7})
    view = Run.open(made.name, place).look()
    assert view.spec() == made.look().spec() == TrainSpec.create("vae", {"optimizer.lr": 0.5, "seed": 7})
    assert (view.kind, view.objective, view.direction, view.plan) == ("train", "val_elbo", "max", PLAN)
    assert view.created_at.tzinfo is not None
    assert (view.status.state, view.attempt, view.trials, view.result) == ("waiting", 0, (), None)


def test_a_search_keeps_its_space(place: Storage) -> None:
    run = make(place, "gan", search=True)
    spec = Run.open(run.name, place).look().spec()
    assert isinstance(spec, TuneSpec)
    assert spec.search.space.parameters.keys() == {"optimizer.lr", "training.batch_size", "model.latent_dim"}


def test_names_tell_model_data_and_time(folder: Storage) -> None:
    assert make(folder, "ae").name.startswith("ae-digits-20")
    assert make(folder, "vae", **{"data.source": "/somewhere/My Photos.NPY"}).name.startswith("vae-my-photos-20")


def test_runs_of_one_second_get_names_of_their_own(place: Storage) -> None:
    names = [make(place).name for _ in range(4)]
    assert len(set(names)) == 4
    assert place.children() == sorted(names)


def test_a_made_up_name_is_none_that_is_taken_elsewhere(folder: Storage) -> None:
    spec = TrainSpec.create("ae", {})
    run = Run.create(folder, "train", spec, PLAN, "min", is_taken=lambda name: not name.endswith("-3"))
    assert folder.children() == [run.name]
    assert run.name.endswith("-3")


class AskedAgain(Storage):
    """A bucket that writes, gives no answer, and is asked again by its client."""

    def create(self, key: str, content: bytes) -> bool:
        return super().create(key, content) and super().create(key, content)


def test_a_run_whose_bucket_was_asked_again_is_not_taken_for_somebody_elses(folder: Storage) -> None:
    bucket = AskedAgain(folder.url)
    assert make(bucket, name="mine").name == "mine"
    assert folder.children() == ["mine"]
    with pytest.raises(RunError, match=r"there is a run 'mine' in .* already; choose another --name"):
        make(bucket, name="mine")


def test_a_run_is_opened_by_its_name_or_the_beginning_of_it(place: Storage) -> None:
    run, _ = make(place, "ae"), make(place, "vae")
    for name in (run.name, "ae", run.name[:8]):
        assert Run.open(name, place).name == run.name


def test_a_beginning_of_several_names_is_ambiguous(place: Storage) -> None:
    first, second = make(place, "ae", name="ae-1"), make(place, "ae", name="ae-1-2")
    with pytest.raises(RunError, match=r"^'ae' begins the names of several runs: ae-1, ae-1-2$"):
        Run.open("ae", place)
    # The second's name is the first's and more: a whole name is never ambiguous.
    assert Run.open(first.name, place).name == first.name
    assert Run.open("ae-1-", place).name == second.name


def test_what_is_no_run_does_not_count(place: Storage) -> None:
    place.put("ae-other/notes.txt", b"no run")
    with pytest.raises(RunError, match=f"there is no run 'ae' in {re.escape(place.name)}; `raygen ls`"):
        Run.open("ae", place)
    with pytest.raises(RunError, match="there is no run 'ae-other'"):
        Run(place, "ae-other").look()


@pytest.mark.parametrize("name", ["", "no/such/run", "../up", ".hidden", "-option"])
def test_what_cannot_be_a_name_is_not_looked_for(name: str, folder: Storage) -> None:
    with pytest.raises(RunError, match="is no name of a run; `raygen ls` lists those there are"):
        Run.open(name, folder)


def test_a_folder_of_a_run_is_answered_with_what_to_type(folder: Storage) -> None:
    make(folder, name="mine")
    with pytest.raises(RunError, match=f"is the folder of a run; type its name: mine --storage {folder.url}$"):
        Run.open(f"{folder.url}/mine", folder)


def test_a_chosen_name_is_the_runs_and_never_changed(place: Storage) -> None:
    assert make(place, name="beta-sweep_2.1").name == "beta-sweep_2.1"
    with pytest.raises(RunError, match=r"there is a run 'beta-sweep_2\.1' .* already; choose another --name"):
        make(place, name="beta-sweep_2.1")
    for name in ("", "../up", "a/b", ".hidden", "-option", "two words", "ü", "x" * 101):
        with pytest.raises(RunError, match="use letters, digits"):
            make(place, name=name)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/file"):
        make(Storage(tmp_path / "file"))


def test_storage_is_where_the_environment_says(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_storage() == str(storage)
    monkeypatch.delenv("RAYGEN_STORAGE")
    assert Path(default_storage()).parts[-2:] == ("raygen", "runs")


def test_weights_to_begin_with_are_kept_with_the_run(place: Storage) -> None:
    run = create(place, TrainSpec.create("gan", {}), name="warm", warm_weights=b"weights")
    assert place.get("warm/warm_start.safetensors") == b"weights"
    assert run.look().trials == ()


# What is asked of a run


def test_what_was_asked_last_is_the_spec_before_an_attempt_begins_too(place: Storage) -> None:
    run = make(place, search=True, **{"search.trials": 4})
    spec = run.look().spec()
    begin(run)
    run.request(reopens=False, spec=spec.with_settings({"search.trials": 6}))
    run.request(reopens=True)
    assert (run.look().requests, ranking.number_of_trials(run.look())) == (2, 6)
    assert Run(place, run.name).look().spec() == spec.with_settings({"search.trials": 6})


def test_two_who_ask_at_once_are_both_heard(place: Storage) -> None:
    first = make(place)
    second = Run(place, first.name)
    assert (first.look().requests, second.look().requests) == (0, 0)
    for run in (first, second, first):
        run.request(reopens=True)
    assert first.look().requests == 3


def test_a_sealed_attempt_never_begins_and_one_that_began_is_not_sealed(place: Storage) -> None:
    run = make(place)
    assert run.seal(1)
    assert run.seal(1), "twice is as good as once"
    assert Attempt.begin(place, run.name, 1) is None
    assert (run.look().attempt, run.look().status.state) == (0, "waiting")
    second = Attempt.begin(place, run.name, 2)
    assert second is not None
    second.close()
    assert not run.seal(2)
    assert run.look().attempt == 2
    assert run.seal(3)
    assert run.look().attempt == 2, "what was sealed is none of its attempts"


# Removing


def test_a_run_is_removed_whole_and_alone(place: Storage) -> None:
    runs = [make(place, name=name) for name in ("ae", "ae-2")]
    for run in runs:
        add_trial(begin(run), {}, [0.5])
    runs[0].remove()
    assert {entry.key.partition("/")[0] for entry in place.list("")} == {"ae-2"}
    assert runs[1].look().trials[0].state == "finished"
    with pytest.raises(RunError, match="there is no run 'ae'"):
        runs[0].look()
    assert make(place, name="ae").look().trials == (), "its name is free again"


class Stuck(Storage):
    """A storage in which nothing below these words can be removed."""

    words = "/trials/"

    def delete(self, keys: Any) -> None:
        for key in keys:
            if self.words in key:
                raise StorageError(f"cannot remove {key}")
            super().delete([key])


def test_a_run_that_cannot_be_removed_whole_is_found_again(folder: Storage) -> None:
    run = make(folder, name="ae")
    add_trial(begin(run), {}, [0.5])
    with pytest.raises(StorageError, match="cannot remove"):
        Run(Stuck(folder.url), "ae").remove()
    assert "ae/run.json" in [entry.key for entry in folder.list("ae")], "what names it goes last"
    Run(folder, "ae").remove()
    assert folder.list("") == []
