"""Folders of a process on its own machine."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raygen.errors import MachineStorageError
from raygen.record.scratch import PREFIX, Scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files of the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_is_for_this_user_alone_and_gone_when_it_is_closed(temporary: Path) -> None:
    first, second = Scratch(), Scratch()
    assert first.folder != second.folder
    assert first.folder.parent == temporary
    assert first.folder.stat().st_mode & 0o077 == 0
    (first.folder / "file").write_text("content")
    first.close()
    assert not first.folder.exists()
    assert second.folder.exists()
    second.close()
    assert list(temporary.glob(f"{PREFIX}*")) == []


def test_what_a_killed_process_left_goes_at_the_next_start_and_what_others_use_stays(temporary: Path) -> None:
    program = """
import os, signal, sys
from raygen.record.scratch import Scratch
print(Scratch().folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = str(Path(__file__).parents[2])
    in_use = Scratch()
    killed = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert left.exists()
    (temporary / f"{PREFIX}being-made").mkdir()
    new = Scratch()
    assert not left.exists()
    assert in_use.folder.exists()
    assert (temporary / f"{PREFIX}being-made").exists(), "its process is about to lock it"
    new.close()
    in_use.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_a_disk_that_takes_nothing_is_its_machine_s_and_named_with_it(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch()

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    for act in (Scratch, lambda: scratch.write("checkpoint", b"content")):
        with pytest.raises(MachineStorageError) as caught:
            act()
        assert caught.value.cause == "lost"
        assert f" on {platform.node()} ({os.strerror(number)}); free" in str(caught.value)
    scratch.close()


def test_a_machine_without_any_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", full)
    with pytest.raises(MachineStorageError, match="No space left on device"):
        Scratch()
