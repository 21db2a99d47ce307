"""What all pictures made of panels share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from matplotlib.cbook import is_math_text

from raygen import plotting


@pytest.mark.parametrize(
    "name", ["a$b$c", r"$\frac{$", "$\\undefined$", "100 $", "漢字", "\x1b[31m\nx", os.fsdecode(b"caf\xe9"), "{}^_%#&"]
)
def test_a_name_is_no_formula(tmp_path: Path, name: str) -> None:
    figure, [axes] = plotting.panels(1)
    figure.suptitle(plotting.plain(name))
    axes.plot([1, 2], label=plotting.plain(name))
    axes.legend()
    plotting.save(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size
    assert not is_math_text(plotting.plain(name))
