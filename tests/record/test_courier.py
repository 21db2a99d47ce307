"""What is given to the courier arrives, in order, however the storage is."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from raygen.errors import StorageError
from raygen.record import courier
from raygen.record.courier import Courier
from raygen.storage import Storage


class Switched(Storage):
    """A folder that can be away; it remembers what was written to it."""

    def __init__(self, address: str | Path) -> None:
        super().__init__(address)
        self.is_away = False
        self.done: list[str] = []

    def put(self, key: str, content: bytes | Path) -> None:
        if self.is_away:
            raise StorageError(f"cannot write {key}: away")
        super().put(key, content)
        self.done.append(key)

    def delete(self, keys: Iterable[str]) -> None:
        if self.is_away:
            raise StorageError("cannot remove: away")
        super().delete(keys)
        self.done += [f"-{key}" for key in keys]


@pytest.fixture
def storage(tmp_path: Path) -> Switched:
    return Switched(tmp_path / "runs")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again after little time."""
    monkeypatch.setattr(courier, "NEAR_EVERY_S", 0.02)
    monkeypatch.setattr(courier, "LONGEST_BACKOFF_S", 0.05)


def test_what_is_given_arrives_and_the_newest_counts(place: Storage) -> None:
    with contextlib.closing(Courier(place)) as post:
        post.put("run/a", b"old")
        post.put("run/b", lambda: b"made when it is time")
        post.put("run/a", b"new")
        post.flush()
        assert [place.get(key) for key in ("run/a", "run/b")] == [b"new", b"made when it is time"]
        post.delete("run/a")
        post.delete("run/c")
        post.flush()
        assert [entry.key for entry in place.list("run")] == ["run/b"]


def test_contents_arrive_in_the_order_in_which_they_were_given_last(storage: Switched) -> None:
    with contextlib.closing(Courier(storage)) as post:
        storage.is_away = True
        for key in ("a", "b", "c", "a"):
            post.put(key, key.encode())
        post.delete("d")
        storage.is_away = False
        post.flush()
        assert storage.done == ["b", "c", "a", "-d"]


def test_what_a_document_names_is_removed_only_once_it_does_not_any_more(storage: Switched) -> None:
    with contextlib.closing(Courier(storage)) as post:
        post.put("document", b"names a")
        post.put("a", b"a")
        post.flush()
        storage.is_away = True
        post.put("document", b"names b")
        post.delete("a")
        post.put("document", b"names b still")
        storage.is_away = False
        post.flush()
        assert storage.done[2:] == ["document", "-a"]


def test_what_is_dropped_while_it_is_delivered_is_removed_again(tmp_path: Path) -> None:
    began, goes_on = threading.Event(), threading.Event()

    class Slow(Storage):
        def put(self, key: str, content: bytes | Path) -> None:
            began.set()
            goes_on.wait(10)
            super().put(key, content)

    slow, file = Slow(tmp_path / "runs"), tmp_path / "file"
    file.write_bytes(b"a")
    with contextlib.closing(Courier(slow)) as post:
        post.put("a", file)
        began.wait(10)
        post.delete("a")
        assert file.exists(), "it is being read"
        goes_on.set()
        post.flush()
    assert (slow.get("a"), file.exists()) == (None, False)


def test_what_was_never_written_is_not_removed(storage: Switched) -> None:
    with contextlib.closing(Courier(storage)) as post:
        storage.is_away = True
        post.put("a", b"a")
        post.delete("a")
        storage.is_away = False
        post.flush()
        assert storage.done == []


def test_a_file_goes_once_it_is_delivered_or_replaced(storage: Switched, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    with contextlib.closing(Courier(storage)) as post:
        storage.is_away = True
        post.put("a", first)
        post.put("a", second)
        assert not first.exists()
        assert second.exists()
        storage.is_away = False
        post.flush()
    assert (storage.get("a"), second.exists()) == (b"second", False)


def test_nobody_waits_for_a_storage_that_is_away_and_all_arrives_when_it_is_back(storage: Switched) -> None:
    with contextlib.closing(Courier(storage)) as post:
        storage.is_away = True
        began = time.perf_counter()
        for number in range(100):
            post.put(f"run/{number % 7}", str(number).encode())
            time.sleep(0.001)
        assert time.perf_counter() - began < 2
        with pytest.raises(StorageError, match="away"):
            post.flush(timeout_s=0.2)
        storage.is_away = False
        post.flush()
    assert {storage.get(f"run/{number % 7}") for number in range(93, 100)} == {
        str(number).encode() for number in range(93, 100)
    }


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Storage]:
    """A folder to which nothing can be written, and nobody says so, until the test has ended."""
    release = threading.Event()

    class Hanging(Storage):
        def put(self, key: str, content: bytes | Path) -> None:
            release.wait(30)

    yield Hanging(tmp_path / "runs")
    release.set()


def test_a_storage_that_hangs_keeps_nobody_for_longer_than_was_said(
    hanging: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "CLOSE_TIMEOUT_S", 0.1)
    post = Courier(hanging)
    post.put("a", b"a")
    with pytest.raises(StorageError, match="cannot write a: no answer"):
        post.flush(timeout_s=0.1)
    began = time.monotonic()
    post.close()
    assert time.monotonic() - began < 5


def test_a_file_that_cannot_be_removed_keeps_nothing_from_being_written(
    storage: Switched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a")

    remove = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == file:
            raise OSError(errno.EROFS, "Read-only file system")
        remove(path, missing_ok)

    with contextlib.closing(Courier(storage)) as post, monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        post.put("a", file)
        post.delete("b")
        post.flush()
        post.put("a", file)
        post.delete("a")
        patch.undo()
        post.put("c", b"c")
        post.flush()
    assert (storage.get("a"), storage.get("c")) == (None, b"c")


def test_what_comes_after_a_file_that_is_gone_arrives(
    storage: Switched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Courier(storage)) as post:
        post.put("run/a", tmp_path / "gone")
        post.put("run/b", b"finished")
        post.flush()
    assert (storage.get("run/a"), storage.get("run/b")) == (None, b"finished")
    assert caplog.messages == [f"run/a cannot be written: {tmp_path / 'gone'} is gone"]


def test_a_folder_that_cannot_be_written_to_is_delivered_to_later(tmp_path: Path) -> None:
    """The real thing: the folder is a file for a while."""
    folder = tmp_path / "runs"
    folder.write_text("in the way")
    with contextlib.closing(Courier(Storage(folder))) as post:
        post.put("run/a", b"a")
        with pytest.raises(StorageError, match="cannot write"):
            post.flush(timeout_s=0.2)
        folder.unlink()
        post.flush()
    assert Storage(folder).get("run/a") == b"a"


def test_an_error_that_nobody_expected_does_not_end_it_and_is_told_once(
    storage: Switched, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bytes:
        if len(tried) < 3:
            tried.append(1)
            raise TypeError("oops")
        return b"whole"

    tried: list[int] = []
    with contextlib.closing(Courier(storage)) as post:
        post.put("a", broken)
        post.flush()
        assert storage.get("a") == b"whole"
        post.put("b", lambda: b"".join([7]))  # type: ignore[list-item]
        with pytest.raises(StorageError, match="Raygen itself"):
            post.flush(timeout_s=0.3)
        post.delete("b")
        post.put("c", b"c")
        post.flush()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [TypeError] * 2
