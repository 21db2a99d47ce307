"""What every storage promises, whichever kind it is."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raygen.errors import StorageError
from raygen.storage import MARK, Storage

ODD = ["a b/ü/100%/x+y=z&(1).json", "%2F/x", "a#b", "a#1", "q?b", "*", "[", "~", "c:d", "e/.hidden", "漢"]


def test_nothing_is_there_before_the_first_write_and_reading_makes_nothing(place: Storage) -> None:
    assert place.get("a/b") is None
    assert place.get("a/b", start=3) is None
    assert place.entry("a/b") is None
    assert place.list() == place.list("a") == []
    assert place.children() == place.children("a") == []
    place.delete(["a/b"])
    place.delete_all("a")
    assert place.folder is None or not place.folder.exists()


def test_what_is_created_stays(place: Storage) -> None:
    assert place.create("run/a.json", b"first")
    assert not place.create("run/a.json", b"second")
    assert place.get("run/a.json") == b"first"


def test_what_is_put_takes_the_place_of_anything(place: Storage) -> None:
    assert place.create("run/a.json", b"first")
    place.put("run/a.json", b"")
    assert place.get("run/a.json") == b""
    assert place.get("run/a.json", start=1) == b""


def test_one_of_many_threads_creates(place: Storage) -> None:
    with ThreadPoolExecutor(8) as threads:
        for turn in range(10):
            barrier = threading.Barrier(8)

            def write(number: int, turn: int = turn, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return place.create(f"race/{turn}", b"%d" % number)

            wins = list(threads.map(write, range(8)))
            assert wins.count(True) == 1
            assert place.get(f"race/{turn}") == b"%d" % wins.index(True)


def create_ten(storage: Storage, mark: bytes) -> list[bool]:
    """What a process of the race does."""
    return [storage.create(f"race/{turn}", mark) for turn in range(10)]


def test_one_of_many_processes_creates(place: Storage) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as processes:
        answers = processes.starmap(create_ten, [(place, b"%d" % number) for number in range(3)])
    for turn, wins in enumerate(zip(*answers, strict=True)):
        assert wins.count(True) == 1
        assert place.get(f"race/{turn}") == b"%d" % wins.index(True)


def test_a_reader_sees_the_old_content_or_the_new(place: Storage) -> None:
    contents = [bytes([number]) * (100_000 + number) for number in range(40)]
    place.put("state", contents[0])
    written = threading.Event()

    def write() -> None:
        for content in contents:
            place.put("state", content)
        written.set()

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        while not writing.done():
            seen = place.get("state")
            assert seen is not None
            assert seen == contents[seen[0]]
            assert [entry.key for entry in place.list()] == ["state"]  # nothing that is being written is listed
        writing.result()
    assert written.is_set()
    assert place.get("state") == contents[-1]


def test_what_grows_is_followed_from_where_one_was(place: Storage) -> None:
    content, seen = b"", b""
    for number in range(6):
        content += b"line %d\n" % number
        place.put("log", content)
        for _ in range(2):
            news = place.get("log", start=len(seen))
            assert news is not None
            seen += news
        assert seen == content
    assert place.get("log", start=len(content) + 7) == b""


def test_a_version_changes_with_the_content_and_never_without_a_write(place: Storage) -> None:
    versions = []
    for content in (b"1", b"2", b"3", b"33", b""):
        place.put("a", content)
        entry = place.entry("a")
        assert entry is not None
        assert (entry.key, entry.size_bytes) == ("a", len(content))
        assert place.entry("a") == entry
        assert place.list() == [entry]
        versions.append(entry.version)
    assert len(set(versions)) == 5


def test_a_listing_is_of_one_prefix_and_sorted(place: Storage) -> None:
    for key in ("a/2", "a/10/x", "ab/1", "a.b/1", "z", "a/1"):
        place.put(key, key.encode())
    assert [entry.key for entry in place.list("a")] == ["a/1", "a/10/x", "a/2"]
    assert [entry.key for entry in place.list("a/")] == ["a/1", "a/10/x", "a/2"]
    assert [entry.size_bytes for entry in place.list("ab")] == [4]
    assert [entry.key for entry in place.list()] == ["a.b/1", "a/1", "a/10/x", "a/2", "ab/1", "z"]
    assert place.list("z") == []  # a content, and nothing below it
    assert place.children() == ["a", "a.b", "ab"]
    assert place.children("a") == ["10"]
    assert place.children("z") == []


def test_a_listing_has_no_end_at_a_thousand(place: Storage) -> None:
    keys = [f"many/{number:04}" for number in range(1_050)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: place.put(key, b""), keys))
    assert [entry.key for entry in place.list("many")] == keys
    place.put("other", b"")
    place.delete_all("many")
    assert [entry.key for entry in place.list()] == ["other"]
    assert place.children() == []


def test_odd_names_are_kept_as_they_are(place: Storage) -> None:
    for key in ODD:
        assert place.create(key, key.encode()), key
    assert [entry.key for entry in place.list()] == sorted(ODD)
    for key in ODD:
        assert place.get(key) == key.encode()
        assert place.entry(key) is not None
    assert place.children("a b") == ["ü"]
    place.delete(ODD)
    assert place.list() == []
    assert place.children() == []


@pytest.mark.parametrize("key", ["../a", "a//b", "a/./b", "/a", "a\\b", "a\n", "\x1b[2J", "\ud800"])
def test_what_is_no_key_is_refused(place: Storage, key: str) -> None:
    for act in (place.get, place.entry, lambda key: place.put(key, b""), lambda key: place.delete([key])):
        with pytest.raises(StorageError, match="it is not a key") as caught:
            act(key)
        assert str(caught.value).isprintable()


def test_deleting_leaves_alone_what_is_not_there_and_all_else(place: Storage) -> None:
    for key in ("a/1", "a/2", "b/c/1", "b/d"):
        place.put(key, b"1")
    place.delete(["a/0", "a/1", "zz", "a/2"])
    assert [entry.key for entry in place.list()] == ["b/c/1", "b/d"]
    assert place.children() == ["b"]
    place.delete_all("b/c")
    place.delete_all("b/d")  # a content, and nothing below it
    place.delete_all("nothing")
    place.delete([])
    assert [entry.key for entry in place.list()] == ["b/d"]
    assert place.children("b") == []


def test_writers_and_removers_do_not_disturb_each_other(place: Storage) -> None:
    def write_and_remove(number: int) -> None:
        for turn in range(30):
            key = f"a/b/{number}-{turn}"
            assert place.create(key, b"1")
            place.put(key, b"2")
            assert place.get(key) == b"2"
            place.delete([key])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write_and_remove, range(4)))
    assert place.list() == []


KEYS = ["a/1", "a/2", "a/b/1", "ab/1", "a.b", "c/d/e"]
STEPS = st.tuples(
    st.sampled_from(["create", "put", "delete", "delete all"]), st.sampled_from(KEYS), st.binary(max_size=3)
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=12))
def test_it_holds_what_a_dictionary_would(place: Storage, steps: list[tuple[str, str, bytes]]) -> None:
    place.delete_all("x")
    kept: dict[str, bytes] = {}
    for act, key, content in steps:
        if act == "create":
            assert place.create(f"x/{key}", content) == (key not in kept)
            kept.setdefault(key, content)
        elif act == "put":
            place.put(f"x/{key}", content)
            kept[key] = content
        elif act == "delete":
            place.delete([f"x/{key}"])
            kept.pop(key, None)
        else:
            folder = key.rpartition("/")[0] or key
            place.delete_all(f"x/{folder}")
            kept = {each: kept[each] for each in kept if not each.startswith(f"{folder}/")}
    assert [(entry.key, entry.size_bytes) for entry in place.list("x")] == [
        (f"x/{key}", len(kept[key])) for key in sorted(kept)
    ]
    assert {key: place.get(f"x/{key}") for key in KEYS} == {key: kept.get(key) for key in KEYS}
    assert place.children("x") == sorted({key.partition("/")[0] for key in kept if "/" in key})


def test_large_contents_come_back(place: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * (20 * 1024**2 // 256) + b"end"
    place.put("large", content)
    assert place.get("large") == content
    (tmp_path / "file").write_bytes(content[::-1])
    place.put("large", tmp_path / "file")
    assert place.get("large") == content[::-1]
    assert place.get("large", start=len(content) - 3) == content[2::-1]
    (tmp_path / "file").write_bytes(b"")
    place.put("large", tmp_path / "file")
    assert place.get("large") == b""


def test_a_probe_leaves_nothing(place: Storage) -> None:
    place.probe()
    assert place.list() == []
    assert place.children() == []


def test_a_check_leaves_nothing_and_a_mark_stays(place: Storage) -> None:
    place.check()
    assert place.list() == []
    assert not place.is_marked()
    for _ in range(2):
        place.mark()
        assert place.is_marked()
    assert [entry.key for entry in place.list()] == [MARK]
    assert place.children() == []


def test_only_the_address_is_sent_to_another_process(place: Storage) -> None:
    place.put("a", b"1")
    sent = pickle.dumps(place)
    assert b"hidden" not in sent
    assert b"Eby8" not in sent
    received = pickle.loads(sent)
    assert received == place
    assert received.get("a") == b"1"
    assert "hidden" not in repr(place)
