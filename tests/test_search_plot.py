from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from raygen import search_plot
from raygen.errors import RunError
from raygen.plotting import COLUMNS, PANEL_INCHES, PIXELS_PER_INCH
from raygen.record.attempt import Attempt
from raygen.spec import TrainSpec
from tests.searches import add_trial, begin, create, search

RATE = '"optimizer.lr" = { loguniform = [1e-4, 1e-2] }\n'
MIXED = (
    '"optimizer.lr" = { loguniform = [9e-4, 1.1e-3] }\n'
    '"model.hidden" = { choice = [[16], [32, 16]] }\n'
    '"optimizer.warmup_fraction" = { quantised = [0.1, 0.5], step = 0.1 }\n'
    '"model.latent_dim" = { int = [2, 64], log = true }\n'
)


def drawn(run: Attempt, folder: Path) -> Image.Image:
    path = folder / "plot.png"
    search_plot.save(run.look(), path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.convert("RGB")


def panels(image: Image.Image) -> tuple[int, int]:
    """Columns and rows of the picture."""
    width, height = (side * PIXELS_PER_INCH for side in PANEL_INCHES)
    return round(image.width / width), round(image.height / height)


def has(image: Image.Image, colour: str) -> bool:
    """Whether some pixel is of this colour, or almost."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    colours = {pixel for _, pixel in image.getcolors(image.width * image.height) or []}
    return any(math.dist(wanted, pixel) < 12 for pixel in colours)


def test_a_search_has_panels_for_curves_cost_and_each_parameter(storage: Path, tmp_path: Path) -> None:
    run = search(storage, MIXED)
    for number in range(8):
        parameters = {
            "optimizer.lr": 9e-4 + 2e-5 * number,
            "model.hidden": [16] if number % 2 else [32, 16],
            "optimizer.warmup_fraction": 0.1 * (1 + number % 5),
            "model.latent_dim": 2 ** (1 + number % 6),
        }
        add_trial(
            run, parameters, [-300.0 - number, -120.0 + number, -110.0], state="stopped" if number else "finished"
        )
    picture = drawn(run, tmp_path)
    assert panels(picture) == (COLUMNS, 2)
    assert has(picture, search_plot.BEST_COLOUR)
    assert has(picture, search_plot.BAND_COLOUR)
    assert not has(picture, search_plot.COLOURS["failed"])


def test_one_trial_that_runs(storage: Path, tmp_path: Path) -> None:
    run = search(storage, RATE)
    add_trial(run, {"optimizer.lr": 1e-3}, [-100.0], state="running")
    assert panels(drawn(run, tmp_path)) == (3, 1)


def test_failed_trials_are_crosses_beside_the_others(storage: Path, tmp_path: Path) -> None:
    run = search(storage, RATE)
    for number in range(1, 5):
        add_trial(run, {"optimizer.lr": number / 1000}, [-100.0, float("nan")])
    assert not has(drawn(run, tmp_path), search_plot.COLOURS["failed"])
    add_trial(run, {"optimizer.lr": 1e-2}, [], state="failed", cause="non-finite loss")
    assert has(drawn(run, tmp_path), search_plot.COLOURS["failed"])


def test_a_training_has_its_curve(storage: Path, tmp_path: Path) -> None:
    run = begin(create(storage, TrainSpec.create("vae", {"training.epochs": 3}), name="one"))
    run.new_trial(1, {}, run.look().spec())
    run.set_trial_state(1, "running")
    with pytest.raises(RunError, match="one has no epoch with a value of val_elbo to draw yet"):
        search_plot.save(run.look(), tmp_path / "plot.png")
    assert not list(tmp_path.glob("*.png"))


def test_the_cost_counts_epochs_in_full_trainings(storage: Path, tmp_path: Path) -> None:
    """Two trials of 3 and 1 of 4 epochs cost one training, and the second begins where the first ended."""
    from matplotlib.figure import Figure

    run = search(storage, RATE, epochs=4)
    add_trial(run, {"optimizer.lr": 1e-3}, [-5.0, -3.0, -4.0])
    add_trial(run, {"optimizer.lr": 2e-3}, [-1.0], state="stopped")
    axes = Figure().add_subplot()
    search_plot._draw_cost(axes, search_plot._Drawing(run.look()))
    [line] = axes.lines
    assert list(line.get_xdata()) == [0.25, 0.5, 0.75, 1.0]
    assert list(line.get_ydata()) == [-5, -3, -3, -1]
