"""How a model learned, as an animation."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raygen import film
from raygen.errors import RunError
from raygen.record.attempt import Attempt
from raygen.record.layout import RunKeys
from raygen.record.reading import lock
from raygen.record.run import PICTURE
from raygen.record.trial import TrialWriter
from raygen.record.view import Trial
from raygen.spec import TrainSpec, TuneSpec
from tests.searches import begin, best_facts, create, record_epochs, run_of


def made(storage: Path, **settings: Any) -> Attempt:
    spec = TuneSpec.search_over("ae", "ae", {name.replace("__", "."): value for name, value in settings.items()})
    return begin(create(storage, spec, name="search"))


def add_trial(
    run: Attempt, number: int, value: float, pictured: Iterable[int], *, grey: int = 0, mode: str = "L"
) -> Trial:
    """A trial with a picture after each of these epochs, as grey as the epoch's number says, or as `grey` more."""
    run.new_trial(number, {"optimizer.lr": number / 100}, TrainSpec.create("ae", {}))
    writer = TrialWriter.begin(run.place(number))
    for epoch in pictured:
        shade = grey + epoch
        colour: Any = shade if mode == "L" else (shade, 0, 255)
        writer.record_picture(epoch, Image.new(mode, (272, 272), colour), keeps=lambda epoch: True)
    writer.close()
    trial = run.look().trial(number)
    return record_epochs(run, trial, [{run.look().objective: value}])


def frames(path: Path) -> list[tuple[Image.Image, int]]:
    """Each frame of an animation in colours, and the milliseconds for which it is shown."""
    with Image.open(path) as animation:
        assert animation.format == "GIF"
        assert animation.info["loop"] == 0, "for ever"
        found = []
        for number in range(getattr(animation, "n_frames", 1)):
            animation.seek(number)
            found.append((animation.convert("RGB"), int(animation.info["duration"])))
        return found


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_it_has_the_best_trial_s_pictures_in_their_order(mode: str, storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    add_trial(run, 1, 0.5, [1, 2], mode=mode)
    add_trial(run, 2, 0.1, [1, 2, 9, 10, 100], mode=mode, grey=100)  # by name 100 would come before 2
    trial, count = film.save(run_of(run), tmp_path / "out.gif")
    assert (trial.number, count) == (2, 5)
    seen = frames(tmp_path / "out.gif")
    blue = 0 if mode == "L" else 255
    for (frame, _), shade in zip(seen, [101, 102, 109, 110, 200], strict=True):
        red, _, last = frame.getpixel((136, 160))  # type: ignore[misc]
        assert (red, last) == (shade, shade if mode == "L" else blue)
    assert [duration for _, duration in seen] == [700, 700, 700, 700, 2500]


def test_each_frame_says_its_epoch_above_the_picture(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    add_trial(run, 1, 0.5, [1, 2])
    film.save(run_of(run), tmp_path / "out.gif")
    (first, _), (second, _) = frames(tmp_path / "out.gif")
    assert first.size == second.size == (272, 272 + 28)
    captions = [np.asarray(frame.crop((0, 0, 272, 28))) for frame in (first, second)]
    assert all(caption.max() > 200 for caption in captions), "something is written there"
    assert not np.array_equal(*captions)


def test_one_picture_makes_a_film_too(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    add_trial(run, 1, 0.5, [1])
    assert film.save(run_of(run), tmp_path / "out.gif")[1] == len(frames(tmp_path / "out.gif")) == 1


def test_a_picture_that_goes_meanwhile_is_left_out(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    found = add_trial(run, 1, 0.5, [1, 2, 3]).progress.pictures
    run.storage.delete([found[3]])
    assert film.save(run_of(run), tmp_path / "out.gif")[1] == 2
    assert [duration for _, duration in frames(tmp_path / "out.gif")] == [700, 2500]
    run.storage.delete([found[1], found[2]])
    with pytest.raises(RunError, match="the pictures of search went while they were read"):
        film.save(run_of(run), tmp_path / "none.gif")


def test_a_damaged_picture_is_named(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    key = add_trial(run, 1, 0.5, [1, 2]).progress.pictures[2]
    whole = run.storage.get(key) or b""
    for damaged in (whole[:60], whole[:37] + bytes(4) + whole[41:]):
        run.storage.put(key, damaged)
        with pytest.raises(RunError, match=f"{key} is damaged: "):
            film.save(run_of(run), tmp_path / "out.gif")
    assert list(tmp_path.glob("*.gif")) == []


def test_the_best_model_s_picture_is_named_if_it_is_damaged_or_gone(storage: Path) -> None:
    run = made(storage)
    add_trial(run, 1, 0.5, [])
    assert film.of_best(run_of(run)) is None
    content = io.BytesIO()
    Image.new("L", (34, 34)).save(content, format="PNG")
    for damaged in (content.getvalue()[:40], b""):
        run.put_best([(best_facts(), {PICTURE: damaged})])
        with pytest.raises(RunError, match=r"search/attempts/0001/best/1/samples\.png is damaged: "):
            film.of_best(run_of(run))
    run.put_best([(best_facts(), {PICTURE: content.getvalue()})])
    picture, shape = film.of_best(run_of(run)) or (None, None)
    assert (picture and picture.size, shape) == ((34, 34), (1, 8, 8))
    run.storage.delete(["search/attempts/0001/best/1/samples.png"])
    with pytest.raises(RunError, match=r"samples\.png is missing"):
        film.of_best(run_of(run))


@pytest.mark.parametrize(
    ("settings", "state", "why"),
    [
        ({}, "running", "the first comes after its first epoch"),
        ({}, "waiting", "the first comes after its first epoch"),
        ({}, "failed", "it ended before its first epoch did"),
        ({"evaluation__pictures": "none"}, "finished", "it was made with evaluation.pictures=none"),
    ],
)
def test_without_pictures_it_says_why(
    settings: dict[str, Any], state: Any, why: str, storage: Path, tmp_path: Path
) -> None:
    run = made(storage, **settings)
    with lock(run.storage, RunKeys(run.run)):
        run.set_status(state)
        with pytest.raises(RunError, match=f"search has no pictures of its training: {why}"):
            film.save(run_of(run), tmp_path / "out.gif")


def test_where_it_cannot_be_written(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    add_trial(run, 1, 0.5, [1])
    with pytest.raises(RunError, match=r"out\.png: a film is an animated GIF; name a file that ends in \.gif"):
        film.save(run_of(run), tmp_path / "out.png")
    with pytest.raises(RunError, match=f"make the folder {tmp_path}/no first"):
        film.save(run_of(run), tmp_path / "no/out.gif")
