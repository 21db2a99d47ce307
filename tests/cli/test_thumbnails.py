"""Images in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cli import console, thumbnails
from cli.main import app
from raygen import pictures
from raygen.runs import Run


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
    thumbnails.show(Run(trained_storage / "gan"))
    assert isinstance(screen.file, io.StringIO)
    lines = screen.file.getvalue().splitlines()
    assert len(lines) == 4 + 1 + 4
    assert all(line.count("▀") == 4 * 9 - 1 for line in lines)
