"""How a model learned, as an animation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raygen import film, metrics
from raygen.errors import RunError
from raygen.plan import Plan
from raygen.runs import Run, Trial
from raygen.spec import TrainSpec, TuneSpec
from raygen.training.loop import Epoch

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)


def made(storage: Path, **settings: Any) -> Run:
    spec = TuneSpec.search_over("ae", "ae", {name.replace("__", "."): value for name, value in settings.items()})
    return Run.create(storage, "tune", spec, PLAN, metrics.find(spec.evaluation.objective).direction, name="search")


def add_trial(
    run: Run, number: int, value: float, pictured: Iterable[int], *, grey: int = 0, mode: str = "L"
) -> Trial:
    """A trial with a picture after each of these epochs, as grey as the epoch's number says, or as `grey` more."""
    trial = run.new_trial(number, {"optimizer.lr": number / 100}, TrainSpec.create("ae", {}))
    for epoch in pictured:
        shade = grey + epoch
        colour: Any = shade if mode == "L" else (shade, 0, 255)
        trial.record_picture(epoch, Image.new(mode, (272, 272), colour), keeps=lambda epoch: True)
        trial.record_epoch(Epoch(epoch=epoch, step=epoch, metrics={run.objective: value}, train_s=1.0, is_best=True))
    trial.set_status("finished")
    return trial


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
    trial, count = film.save(run, tmp_path / "out.gif")
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
    film.save(run, tmp_path / "out.gif")
    (first, _), (second, _) = frames(tmp_path / "out.gif")
    assert first.size == second.size == (272, 272 + 28)
    captions = [np.asarray(frame.crop((0, 0, 272, 28))) for frame in (first, second)]
    assert all(caption.max() > 200 for caption in captions), "something is written there"
    assert not np.array_equal(*captions)


def test_one_picture_makes_a_film_too(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    add_trial(run, 1, 0.5, [1])
    assert film.save(run, tmp_path / "out.gif")[1] == len(frames(tmp_path / "out.gif")) == 1


def test_a_picture_that_goes_meanwhile_is_left_out(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(storage)
    found = add_trial(run, 1, 0.5, [1, 2, 3]).pictures()
    monkeypatch.setattr(Trial, "pictures", lambda trial: found)
    found[3].unlink()
    assert film.save(run, tmp_path / "out.gif")[1] == 2
    assert [duration for _, duration in frames(tmp_path / "out.gif")] == [700, 2500]
    found[1].unlink()
    found[2].unlink()
    with pytest.raises(RunError, match="the pictures of search went while they were read"):
        film.save(run, tmp_path / "none.gif")


def test_a_damaged_picture_is_named(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    path = add_trial(run, 1, 0.5, [1, 2]).pictures()[2]
    whole = path.read_bytes()
    for damaged in (whole[:60], whole[:37] + bytes(4) + whole[41:]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=f"{path} is damaged: "):
            film.save(run, tmp_path / "out.gif")
    assert list(tmp_path.glob("*.gif")) == []


@pytest.mark.parametrize(
    ("settings", "state", "why"),
    [
        ({}, "running", "the first comes after its first epoch"),
        ({}, "waiting", "the first comes after its first epoch"),
        ({}, "failed", "it was made before there were any, or ended before its first epoch did"),
        ({"evaluation__pictures": "none"}, "finished", "it was made with evaluation.pictures=none"),
    ],
)
def test_without_pictures_it_says_why(
    settings: dict[str, Any], state: Any, why: str, storage: Path, tmp_path: Path
) -> None:
    run = made(storage, **settings)
    with run.lock():
        run.set_status(state)
        with pytest.raises(RunError, match=f"search has no pictures of its training: {why}"):
            film.save(run, tmp_path / "out.gif")


def test_where_it_cannot_be_written(storage: Path, tmp_path: Path) -> None:
    run = made(storage)
    add_trial(run, 1, 0.5, [1])
    with pytest.raises(RunError, match=r"out\.png: a film is an animated GIF; name a file that ends in \.gif"):
        film.save(run, tmp_path / "out.png")
    with pytest.raises(RunError, match=f"make the folder {tmp_path}/no first"):
        film.save(run, tmp_path / "no/out.gif")
