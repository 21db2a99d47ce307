"""What a run printed, read by somebody who follows it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen.record import log
from raygen.record.layout import RunKeys
from raygen.record.log import LogTail, LogWriter
from raygen.storage import Storage


def writer(storage: Storage, attempt: int = 1) -> LogWriter:
    return LogWriter(RunKeys("run").attempt(attempt), storage.put, lambda key: storage.delete([key]))


def lines(tail: LogTail, *, ended: bool = False) -> list[str]:
    tail._look_at = 0.0  # as if it were time to look again
    return list(tail.lines(ended=ended))


def test_lines_come_once_and_half_a_line_waits_for_its_end(place: Storage) -> None:
    written, tail = writer(place), LogTail(place, "run")
    assert lines(tail) == []
    written.add(b"one\ntwo\nthr")
    assert lines(tail) == ["one", "two"]
    written.add(b"ee\n")
    assert lines(tail) == ["three"]
    assert lines(tail) == []
    written.add("half, of ümlauts".encode())
    assert lines(tail) == []
    assert lines(tail, ended=True) == ["half, of ümlauts"]
    assert lines(tail, ended=True) == []


def test_who_comes_late_may_skip_what_was_printed(place: Storage) -> None:
    written = writer(place)
    written.add(b"old\n")
    tail = LogTail(place, "run", skip=True)
    written.add(b"new\n")
    assert lines(tail) == ["new"]


def test_bytes_that_are_no_text_are_shown_as_such(place: Storage) -> None:
    writer(place).add(b"\xff\xfe\n")
    assert lines(LogTail(place, "run")) == ["\ufffd\ufffd"]


@settings(max_examples=25)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30), max_size=12),
    looks=st.sets(st.integers(0, 11)),
)
def test_a_log_of_many_parts_and_attempts_is_read_in_order(
    texts: list[str], looks: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    storage = Storage(tmp_path_factory.mktemp("runs"))
    tail, found = LogTail(storage, "run"), []
    with pytest.MonkeyPatch.context() as small:
        small.setattr(log, "PART_BYTES", 40)
        for number, text in enumerate(texts):
            if number % 5 == 0:
                written = writer(storage, attempt=1 + number // 5)
            written.add(f"{text}\n".encode())
            if number in looks:
                found += lines(tail)
    assert found + lines(tail, ended=True) == texts


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 60), max_size=120), first=st.integers(1, 4), last=st.integers(1, 4))
def test_a_long_log_keeps_its_beginning_and_its_end_and_says_how_much_is_left_out(
    sizes: list[int], first: int, last: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    storage = Storage(tmp_path_factory.mktemp("runs"))
    texts = [f"{number} {'x' * size}" for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as small:
        for name, value in (("PART_BYTES", 200), ("FIRST_PARTS", first), ("LAST_PARTS", last)):
            small.setattr(log, name, value)
        written, follower, followed = writer(storage), LogTail(storage, "run"), []
        for text in texts:
            written.add(f"{text}\n".encode())
            followed += lines(follower)
        found = lines(LogTail(storage, "run"), ended=True)
    assert (
        followed == [*texts, *[line for line in followed if line not in texts]][: len(followed)] or followed == texts
    )
    assert sum(entry.size_bytes for entry in storage.list("run")) < (first + last + 1) * 300
    notes = [place for place, line in enumerate(found) if line.endswith("lines are left out here)")]
    if not notes:
        assert found == texts
        return
    [note] = notes
    left_out = int(found[note].lstrip("( ").split()[0])
    assert found[:note] == texts[:note]
    assert found[note + 1 :] == texts[note + left_out :]
    assert note + left_out < len(texts)
