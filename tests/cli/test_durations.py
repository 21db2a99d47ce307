"""Lengths of time as people type them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.durations import parse_duration_s, parse_timeout_s
from raygen.errors import InputError
from raygen.queue.job import limit_in_words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("90m", 5400),
        ("2h", 7200),
        ("30d", 2_592_000),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("0s", 0),
        ("90min", 5400),
    ],
)
def test_a_number_and_its_unit_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "10", "-1h", "1h-30m", "h", "1e3s", "٣d", "9" * 400 + "d", "1w", "1  h", "1h "]
)
def test_anything_else_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(InputError, match="such as 30s, 90m, 2h or 30d"):
        parse_duration_s(text)


@given(st.integers(0, 10**9))
def test_what_raygen_says_is_a_length_of_time_to_type(seconds: int) -> None:
    assert parse_duration_s(limit_in_words(seconds)) == seconds


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("0", 0), ("0.5", 0.5), ("10m", 600), ("1 h 30 min", 5400)])
def test_a_timeout_may_be_a_number_of_seconds_alone(text: str, seconds: float) -> None:
    assert parse_timeout_s(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "soon", "1e3", "nan", "inf"])
def test_a_timeout_is_a_length_of_time(text: str) -> None:
    with pytest.raises(InputError, match="is no length of time"):
        parse_timeout_s(text)


@given(st.text(max_size=20))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(InputError):
        assert parse_duration_s(text) >= 0
