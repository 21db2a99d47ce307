"""Opening a queue's file to those who share its folder opens nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raygen.queue import sharing


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """Where a queue's file is made, in a folder in which anybody may write."""
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o777)
    return folder / "queue.sqlite"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A file that is nobody else's business."""
    key = tmp_path / "key"
    key.write_text("private")
    key.chmod(0o600)
    return key


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_file_and_those_beside_it_are_opened(queue: Path) -> None:
    beside = queue.with_name("queue.sqlite-wal")
    beside.touch(0o600)
    sharing.share(queue)
    assert (mode(queue), mode(beside)) == (0o666, 0o666)


@pytest.mark.parametrize("name", ["queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_what_a_neighbour_has_linked_there_stays_closed(
    queue: Path, private: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    link(private, queue.with_name(name))
    sharing.share(queue)
    assert mode(private) == 0o600


def test_a_mode_of_ones_own_is_said_and_nobody_is_sent_for(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.touch(0o400)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write it all the same
    assert sharing.hint(queue) == f"; {queue} is yours, but its mode, -r--------, keeps you from writing"
