"""What is shown while images are on their way."""

import re

import pytest

from cli import progress
from raygen.errors import DataError
from raygen.progress import heard_by, in_lines, to_listener


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Rich take standard error for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")


def plain(drawn: str) -> str:
    """What is drawn without colours and moves of the cursor."""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", drawn)


def test_one_line_if_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("sending images") as tell:
        for done_bytes in (0, 1_000_000, 3_000_000):
            tell(done_bytes, 3_000_000)
        tell(500_000, 500_000)  # an official test part
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"sending images: 3\.0 MB in \d\.\d s\nsending images: 500\.0 kB in \d\.\d s\n", err)


def test_nothing_if_quiet_or_if_nothing_moves(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("sending images", quiet=True) as tell:
        tell(5, 5)
    with progress.shown("sending images"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("sending images") as tell:
        tell(1_000_000, 4_000_000)
        tell(4_000_000, 4_000_000)
    drawn = plain(capsys.readouterr().err)
    assert re.search(r"sending images ━+ 4\.0/4\.0 MB", drawn)
    assert re.search(r"sending images: 4\.0 MB in \d\.\d s\n$", drawn)


def test_a_bar_goes_away_with_what_failed(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with progress.shown("sending images") as tell:
            tell(1_000_000, 4_000_000)
            raise DataError("a part is damaged")

    with pytest.raises(DataError):
        fail()
    err = capsys.readouterr().err
    assert "\x1b[?25h" in err  # the cursor is back
    assert "sending images:" not in plain(err)


def test_whoever_listens_hears_of_what_is_fetched_far_below() -> None:
    told: list[tuple[int, int]] = []
    with heard_by(lambda *progress: told.append(progress)):
        to_listener(1, 2)
    to_listener(2, 2)
    assert told == [(1, 2)]


def test_a_log_has_a_line_in_so_many_seconds_and_one_at_the_end() -> None:
    said: list[str] = []
    tell = in_lines("fetching images", said.append, every_s=60)
    for done_bytes in range(0, 2_000_000_001, 500_000_000):
        tell(done_bytes, 2_000_000_000)
    assert said == ["fetching images: 2.0 GB of 2.0 GB"]
    said.clear()
    tell = in_lines("fetching images", said.append, every_s=0)
    tell(0, 10_000_000)
    tell(5_000_000, 10_000_000)
    assert said == ["fetching images: 0.0 kB of 10.0 MB", "fetching images: 5.0 MB of 10.0 MB"]
