"""What a driver prints reaches the run's log, whatever becomes of where it would have gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.cluster import log
from raygen.cluster.log import Folding
from raygen.cluster.session_logs import SessionLogs

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
PROGRAM = """
import subprocess, sys
from raygen.cluster import log
with open(sys.argv[1], "ab", buffering=0) as kept, log.kept(kept.write):
    for number in range(3000):
        print("line", number, flush=number % 100 == 0)
    subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
    print("the last", flush=True)
print("after it")
"""


def texts(path: Path) -> list[str]:
    """The lines without their times."""
    return [line.partition(" ")[2] for line in path.read_text().splitlines()]


EXPECTED = [*(f"line {number}" for number in range(3000)), "of a child", "the last"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_where_it_goes_costs_that_alone_and_is_told_once(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        program = PROGRAM.replace('print("after it")', "")
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "log")],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    found = texts(tmp_path / "log")
    told = [line for line in found if line.startswith("what is printed from here on")]
    assert told == ["what is printed from here on is in this log alone: No space left on device"]
    assert [line for line in found if line not in told] == EXPECTED


def test_all_of_it_is_passed_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log")], env=ENVIRONMENT, capture_output=True, check=True
    )
    assert done.stdout.decode().splitlines() == [*EXPECTED, "after it"]
    assert texts(tmp_path / "log") == EXPECTED


def test_no_more_than_so_much_is_passed_on(tmp_path: Path) -> None:
    program = PROGRAM.replace("with open", "log.PASSED_BYTES = 2**13\nwith open")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], env=ENVIRONMENT, capture_output=True, check=True
    )
    assert len(done.stdout) < 2**13 + 100
    found = texts(tmp_path / "log")
    told = "what is printed from here on is in this log alone: it is more than 0.0078125 MB"
    assert [line for line in found if line != told] == EXPECTED
    assert found.count(told) == 1


def test_what_has_no_end_is_kept_in_pieces(tmp_path: Path) -> None:
    program = PROGRAM.replace("range(3000)", "range(0)").replace(
        'print("the last"', 'print("".join(map(str, range(40_000)))'
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], env=ENVIRONMENT, capture_output=True, check=True
    )
    sizes = [len(line) for line in texts(tmp_path / "log")]
    assert sizes == [len("of a child"), 2**16, 2**16, 188_890 - 2 * 2**16]


def folded(lines: list[bytes]) -> list[bytes]:
    folding = Folding()
    return [kept for line in lines if (kept := folding.folded(line)) is not None]


def test_a_warning_that_comes_every_second_is_told_now_and_then() -> None:
    """As Ray's do, which differ in their times, between lines that do not repeat."""
    printed = []
    for second in range(240):
        printed.append(
            f"(autoscaler +{second // 60}m{second % 60}s) Warning: No available node types can help".encode()
        )
        printed.append(f"epoch {second}".encode())
    kept = folded(printed)
    warnings = [line for line in kept if b"Warning" in line]
    assert warnings[0] == printed[0]
    assert [line[-20:] for line in warnings[1:]] == [b" (repeated 10 times)", b"(repeated 100 times)"]
    assert [line for line in kept if b"Warning" not in line] == printed[1::2]


def test_lines_that_differ_are_all_kept() -> None:
    traceback = [b"Traceback (most recent call last):", b"  File 1", b"  File 2", b"", b"ValueError: 3"]
    assert folded(traceback * 3) == traceback * 3


def test_a_line_that_only_has_the_word_in_a_name_is_no_warning() -> None:
    failed = [f"trial {number} failed: cannot read /warnings/{name}".encode() for number in (3, 4) for name in "xy"]
    assert folded(failed * 3) == failed * 3


@given(lines=st.lists(st.sampled_from([b"a", b"b", b"warning 1", b"warning 2", b"Other WARN 3"]), max_size=300))
def test_nothing_is_left_out_that_was_not_told(lines: list[bytes]) -> None:
    kept = folded(lines)
    assert len(kept) <= len(lines)
    seen: set[bytes] = set()
    for place, line in enumerate(lines):
        key = line.rstrip(b"0123456789")
        if key not in seen:
            assert line in kept[: place + 1], "the first of a kind is always told"
        seen.add(key)
    for kind in (b"warning ", b"Other WARN "):
        assert sum(line.startswith(kind) for line in kept) <= 3


def test_how_many_warnings_are_remembered_is_bounded() -> None:
    folding = Folding()
    for number in range(3 * log.MOST_WARNINGS):
        assert folding.folded(f"warning {'x' * number}".encode()) is not None
    assert len(folding._warnings) <= log.MOST_WARNINGS


def test_of_ray_s_own_logs_the_problems_since_the_attempt_began_are_told(tmp_path: Path) -> None:
    raylet = tmp_path / "raylet.out"
    raylet.write_text("[2026-11-22 12:00:00,000 E 7 7] (raylet) of another job\n")
    logs = SessionLogs(tmp_path)
    assert list(logs.problems()) == []
    with raylet.open("a") as file:
        file.write("[2026-11-22 12:00:01,000 I 7 7] (raylet) all is well\n")
        for number in range(50):
            file.write(f"[2026-11-22 12:00:02,000 W 7 7] (raylet) problem {number}\n")
    (tmp_path / "gcs_server.err").write_bytes(b"\xff terminate called\n")
    (tmp_path / "worker-1.err").write_text("of no interest: its driver prints it\n")
    told = list(logs.problems())
    assert told[:2] == ["the end of Ray's gcs_server.err:", "\ufffd terminate called"]
    assert told[2] == "the end of Ray's raylet.out:"
    assert told[3:] == [f"[2026-11-22 12:00:02,000 W 7 7] (raylet) problem {number}" for number in range(30, 50)]


def test_ray_s_logs_may_have_gone(tmp_path: Path) -> None:
    (tmp_path / "raylet.err").mkdir()
    assert list(SessionLogs(tmp_path).problems()) == []
    assert list(SessionLogs(tmp_path / "gone").problems()) == []
