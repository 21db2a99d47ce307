"""The bound of the cached images."""

import errno
import fcntl
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from filelock import FileLock

from raygen.data import DataOptions, cache, load

Refusal = Callable[..., str]


def arrays(folder: Path, count: int) -> list[DataOptions]:
    """Sources whose images take 25,600 bytes each, and labels 800 more."""
    for number in range(count):
        pixels = np.random.RandomState(number).randint(256, size=(100, 16, 16)).astype(np.uint8)
        np.savez(folder / f"a{number}.npz", images=pixels, labels=np.arange(100))
    return [DataOptions(source=str(folder / f"a{number}.npz")) for number in range(count)]


def cached() -> list[str]:
    """The sources with images in the cache."""
    return sorted(path.name[:2] for path in (cache.folder() / "decoded").glob("a*native-" + "?" * 16 + ".npy"))


def age(name: str, hours: float) -> None:
    """Let a source have been used so long ago."""
    for path in (cache.folder() / "decoded").glob(f"{name}-*"):
        then = path.stat().st_mtime - 3600 * hours
        os.utime(path, (then, then))


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_CACHE_GB", "60e-6")
    first, second, third = arrays(tmp_path, 3)
    load(first)
    load(second)
    age("a0", hours=2)
    age("a1", hours=3)
    assert cached() == ["a0", "a1"]
    load(first)  # used again
    load(third)
    assert cached() == ["a0", "a2"]
    assert not [path for path in (cache.folder() / "decoded").glob("a1*") if path.suffix != ".lock"]
    assert len(load(second).train.images) == 80


def _hold(options: DataOptions, mapped: Any, done: Any) -> None:
    dataset = load(options)
    mapped.put(dataset.train.images.sum().item())
    done.wait(60)


def test_what_a_process_has_mapped_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_CACHE_GB", "30e-6")
    first, second, third = arrays(tmp_path, 3)
    context = multiprocessing.get_context("spawn")
    mapped, done = context.Queue(), context.Event()
    other = context.Process(target=_hold, args=(first, mapped, done))
    other.start()
    assert mapped.get(timeout=60) > 0
    age("a0", hours=2)
    load(second)
    assert cached() == ["a0", "a1"]
    done.set()
    other.join(60)
    assert other.exitcode == 0
    load(third)
    assert cached() == ["a2"]


def test_a_home_on_nfs_makes_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There flock(2) asks for files that are open for writing, as its exclusive locks are those of fcntl(2)."""
    lock = fcntl.flock

    def as_on_nfs(file: IO[bytes] | int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    monkeypatch.setenv("RAYGEN_CACHE_GB", "30e-6")
    first, second = arrays(tmp_path, 2)
    for options in (first, second):
        load(options)
    assert cached() == ["a1"]


def test_what_this_process_has_mapped_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_CACHE_GB", "0")
    first, second, third = arrays(tmp_path, 3)
    validation = load(first).validation.images  # one tensor of the map is enough
    load(second)
    assert cached() == ["a0", "a1"]
    del validation
    load(third)
    assert cached() == ["a2"]


def test_what_killed_processes_left_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_CACHE_GB", "30e-6")
    first, second = arrays(tmp_path, 2)
    folder = cache.folder() / "decoded"
    folder.mkdir(parents=True)
    left = folder / ".b-0123456789abcdef.npy.elsewhere.partial"
    left.write_bytes(b"\0" * 20_000)
    with FileLock(folder / "b-0123456789abcdef.npy.lock"):  # somebody writes it still
        load(first)
        assert left.exists()
    load(second)
    assert not left.exists()


def test_a_hidden_folder_s_images_are_kept_while_they_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYGEN_CACHE_GB", "0")
    [first] = arrays(tmp_path, 1)
    hidden = tmp_path / ".hidden.npz"
    shutil.copy(first.source, hidden)
    dataset = load(DataOptions(source=str(hidden)))
    load(first)
    [file] = (cache.folder() / "decoded").glob("hidden-*[0-9a-f].npy")
    assert dataset.train.images.sum() > 0
    del dataset
    load(first.model_copy(update={"image_size": 8}))
    assert not file.exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_bound_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, text: str
) -> None:
    monkeypatch.setenv("RAYGEN_CACHE_GB", text)
    [options] = arrays(tmp_path, 1)
    assert f"RAYGEN_CACHE_GB={text}: write" in refusal(options.source)
