"""The names that images are written under."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.image_files import targets

NAMES = st.tuples(
    st.sampled_from(["", "x/"]), st.text("ab.", min_size=1, max_size=3), st.sampled_from([".png", ".jpg", ".PNG"])
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "b.jpg", "x/a.png"], ["a.png", "b.png", "x/a.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png"]),
        (["a.JPG", "a.PNG", "b"], ["a.JPG.png", "a.PNG.png", "b.png"]),
        (["a.jpg", "a.jpg.png", "a.png"], ["a.jpg.png.png", "a.jpg.png", "a.png"]),
        (["a.gif", "a.gif.bmp", "a.jpg"], ["a.gif.png", "a.gif.png.png", "a.jpg.png"]),
        (["x.y/a", "x.y/b.c.bmp"], ["x.y/a.png", "x.y/b.c.png"]),
        (["f.jpg", "f.png/in.png"], ["f.png.png", "f.png/in.png"]),
    ],
)
def test_names_are_kept_and_told_apart(names: list[str], expected: list[str]) -> None:
    assert targets(names) == expected


@given(st.lists(NAMES.map("".join), unique=True))
def test_no_image_takes_the_place_of_another(names: list[str]) -> None:
    found = targets(names)
    assert max(Counter(found).values(), default=1) == 1
    for name, target in zip(names, found, strict=True):
        assert target.endswith(".png")
        assert target.startswith(name.rpartition(".")[0])
        assert target == name or not name.endswith(".png")
