"""Images in the terminal."""

from __future__ import annotations

import contextlib
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cli import console, thumbnails
from cli.main import app
from raygen import pictures
from raygen.errors import RunError
from raygen.history import History
from raygen.record.attempt import Attempt
from raygen.record.run import Run
from raygen.record.trial import TrialWriter
from raygen.site import Site
from raygen.spec import TrainSpec
from raygen.storage import Storage
from tests.cli.conftest import PLAN


@pytest.mark.parametrize("columns", [5, 16, 40, 60, 80, 200])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 48), (1, 28, 28)])
def test_they_fit_the_terminal(columns: int, shape: tuple[int, int, int]) -> None:
    picture = pictures.grid(torch.rand(64, *shape)).convert("RGB")
    small = thumbnails.shrunk(picture, shape, columns)
    assert small.height % 2 == 0
    text = thumbnails.half_blocks(small)
    lines = text.plain.splitlines()
    assert len(lines) == small.height // 2
    assert {len(line) for line in lines} == {small.width}
    assert small.width <= columns
    if columns >= 80:
        assert small.width > columns // 2 or small.width == 8 * 9 - 1


def test_each_image_keeps_its_colour_and_place() -> None:
    colours = torch.zeros(64, 3, 32, 32)
    colours[0, 0], colours[1, 1], colours[8, 2] = 1, 1, 1
    small = np.asarray(thumbnails.shrunk(pictures.grid(colours), (3, 32, 32), 80))
    assert (small[:16, :16] == (255, 0, 0)).all()
    assert (small[:16, 17:33] == (0, 255, 0)).all()
    assert (small[18:, :16] == (0, 0, 255)).all()
    assert (small[:, 34:] == 0).all()


def test_a_character_holds_two_pixels() -> None:
    picture = Image.new("RGB", (1, 2))
    picture.putpixel((0, 0), (255, 0, 0))
    picture.putpixel((0, 1), (0, 0, 255))
    [span] = thumbnails.half_blocks(picture).spans
    assert str(span.style) == "#ff0000 on #0000ff"


def test_a_pipe_gets_no_pictures(trained: CliRunner) -> None:
    result = trained.invoke(app, ["show", "gan", "--images"])
    assert result.exit_code == 0, result.output
    assert "▀" not in result.output


def test_a_terminal_gets_them(trained_storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=40)
    monkeypatch.setattr(console, "data", lambda: screen)
    thumbnails.show(Site(trained_storage).history("gan"))
    assert isinstance(screen.file, io.StringIO)
    best, headed = screen.file.getvalue().splitlines()[:9], screen.file.getvalue().splitlines()[9:]
    assert all(line.count("▀") == 4 * 9 - 1 for line in best)
    assert headed[0] == "trial 1 after epoch"
    assert headed[1].split() == ["1", "20"]
    assert len(headed[2:]) == 8 + 1 + 8
    assert all(line.count("▀") == 2 * 17 - 1 for line in headed[2:])


def test_progress_is_shown_of_a_run_that_has_no_best_model_yet(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TrainSpec.create("ae", {})
    Run.create(Storage(storage), "train", spec, PLAN, "min", name="ae")
    attempt = Attempt.begin(Storage(storage), "ae", 1)
    assert attempt is not None
    with contextlib.closing(attempt):
        attempt.new_trial(1, {}, spec)
        found = Site(storage).history("ae")
        with contextlib.closing(TrialWriter.begin(attempt.place(1))) as writer:
            writer.set_state("running")
            with pytest.raises(RunError, match="ae has no pictures of its training"):
                show_in_terminal(found, monkeypatch)
            writer.record_picture(1, pictures.grid(torch.rand(64, 1, 8, 8)), keeps=lambda epoch: True)
    assert show_in_terminal(found, monkeypatch).startswith("trial 1 after epoch\n1 ")


def show_in_terminal(found: History, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal of 80 columns gets to see of a run."""
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    monkeypatch.setattr(console, "data", lambda: screen)
    thumbnails.show(found)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_the_same_images_stand_beside_each_other_after_each_epoch() -> None:
    colours = torch.zeros(3, 64, 3, 32, 32)
    for epoch in range(3):
        colours[epoch, 0, epoch], colours[epoch, 8, (epoch + 1) % 3] = 1, 1
    small = np.asarray(thumbnails.first_column([pictures.grid(images) for images in colours]))
    assert small.shape == (16 + 2 + 16, 3 * 17 - 1, 3)
    for epoch in range(3):
        columns = slice(17 * epoch, 17 * epoch + 16)
        for rows, channel in ((slice(0, 16), epoch), (slice(18, 34), (epoch + 1) % 3)):
            assert (small[rows, columns].reshape(-1, 3) == np.eye(3)[channel] * 255).all()


@given(epochs=st.lists(st.integers(1, 1000), min_size=1, max_size=40, unique=True).map(sorted), most=st.integers(0, 9))
def test_the_first_and_the_last_epoch_are_shown_and_some_between(epochs: list[int], most: int) -> None:
    chosen = thumbnails.spaced(epochs, most)
    assert len(chosen) == min(len(epochs), max(most, 1))
    assert chosen == sorted(set(chosen) & set(epochs))
    assert chosen[-1] == epochs[-1]
    assert len(chosen) == 1 or chosen[0] == epochs[0]
    places = [epochs.index(epoch) for epoch in chosen]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_a_film_is_written_before_anything_is_shown(trained: CliRunner, tmp_path: Path) -> None:
    result = trained.invoke(app, ["show", "vae", "--film", "out.gif"])
    assert result.exit_code == 0, result.output
    assert "a film of trial 1 in out.gif: 6 pictures" in result.stderr
    with Image.open(tmp_path / "out.gif") as film:
        assert getattr(film, "n_frames", 1) == 6  # epochs 1, 2, 4, 8, 16 and 20
    for arguments, reason in (
        (["vae", "--film", "out.png"], "name a file that ends in .gif"),
        (["vae", "--film", "no/out.gif"], "make the folder no first"),
        (["untrained", "--film", "other.gif"], "untrained has no pictures of its training: the first comes after"),
    ):
        result = trained.invoke(app, ["show", *arguments])
        assert result.exit_code == 2
        assert reason in result.stderr
        assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".gif"] == ["out.gif"]
