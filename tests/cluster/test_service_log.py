"""What dispatchers tell: each thing once a minute, in a log of bounded size, whatever becomes of the disk."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raygen.cluster import service_log
from raygen.cluster.background import MOST_BYTES
from raygen.cluster.service_log import FOLD_S, RepeatFilter


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(service_log, "time", clock)
    return clock


def told(filter_: logging.Filter, message: str, *arguments: object) -> str | None:
    """What is told of a message that comes now, if anything is."""
    record = logging.LogRecord("raygen.dispatcher", logging.WARNING, __file__, 1, message, arguments, None)
    return record.getMessage() if filter_.filter(record) else None


def test_what_comes_again_and_again_is_told_once_a_minute_with_its_number(clock: Clock) -> None:
    repeats, lines = RepeatFilter(), []
    for _ in range(360):
        lines.append(told(repeats, "no answer from %s", "http://host:8265"))
        clock.now += 0.5
    assert [line for line in lines if line] == [
        "no answer from http://host:8265",
        "no answer from http://host:8265 (… 119 times more in 60 s)",
        "no answer from http://host:8265 (… 119 times more in 60 s)",
    ]


def test_what_differs_is_told_each_time(clock: Clock) -> None:
    repeats = RepeatFilter()
    for number in range(1000):
        assert told(repeats, "%s: running", f"job-{number}") == f"job-{number}: running"
        clock.now += FOLD_S
    assert len(repeats._told) <= 11, "what was told long ago is forgotten"
    assert told(repeats, "100 %") == "100 %", "a message without arguments is no format"
    clock.now += 1
    assert told(repeats, "100 %") is None
    clock.now += FOLD_S
    assert told(repeats, "100 %") == "100 % (… 1 times more in 61 s)"


def in_background(log: Path, program: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program as a dispatcher in the background is run, its output in the log too."""
    start = "import logging, sys; from pathlib import Path; from raygen.cluster import service_log\n"
    start += "service_log.write(Path(sys.argv[1]))\n"
    with open(log if log.parent.is_dir() else os.devnull, "ab") as output:
        command = [sys.executable, "-c", start + program, str(log)]
        return subprocess.run(command, stdout=output, stderr=output, check=False)


def test_a_log_is_bounded_with_all_that_its_process_prints(tmp_path: Path) -> None:
    log = tmp_path / "dispatcher.log"
    program = """
for number in range(5000):
    logging.getLogger("raygen.dispatcher").info("%d: %s", number, "x" * 500)
    print("y" * 500, file=sys.stderr)
print("the last words", file=sys.stderr, flush=True)
"""
    assert in_background(log, program).returncode == 0
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 2.1 * MOST_BYTES
    assert "the last words" in log.read_text()
    assert " 4999: xxx" in log.read_text()


def test_no_name_moves_the_cursor_of_who_reads_the_log(tmp_path: Path) -> None:
    log = tmp_path / "dispatcher.log"
    program = 'logging.getLogger("raygen.dispatcher").info("%s: running", "a\\x1b[31m\\nb\\udcff")'
    assert in_background(log, program).returncode == 0
    [line] = log.read_text().splitlines()
    assert line.endswith(r" a\x1b[31m\nb\udcff: running")


def test_a_full_disk_under_the_log_ends_nothing(tmp_path: Path) -> None:
    log = tmp_path / "dispatcher.log"
    log.symlink_to("/dev/full")
    program = """
for number in range(50):
    logging.getLogger("raygen.dispatcher").info("%d: %s", number, "x" * 5000)
Path("{}").write_text("went on")
""".format(tmp_path / "went-on")
    in_background(log, program)
    assert (tmp_path / "went-on").read_text() == "went on"


def test_a_folder_that_went_away_under_the_log_ends_nothing_and_lines_come_when_it_is_back(tmp_path: Path) -> None:
    log = tmp_path / "state" / "dispatcher.log"
    program = f"""
logger = logging.getLogger("raygen.dispatcher")
logger.info("lost")
Path({str(log.parent)!r}).mkdir()
logger.info("kept")
"""
    assert in_background(log, program).returncode == 0
    assert log.read_text().endswith(" kept\n")
