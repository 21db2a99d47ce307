"""Documents that are not as they were written: each is named, and only its own run cannot be read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen.errors import RunError
from raygen.record import ranking
from raygen.record.attempt import Attempt
from raygen.record.run import Run
from raygen.record.summary import summary, why_untested
from raygen.report import Report
from raygen.storage import Storage
from tests.searches import run_of

DOCUMENTS = (
    "run/run.json",
    "run/requests/0001.json",
    "run/attempts/0002.json",
    "run/attempts/0002/status.json",
    "run/attempts/0002/result.json",
    "run/attempts/0002/trials/002/trial.json",
    "run/attempts/0002/trials/002/0001.json",
)


def read_all(run: Run) -> None:
    """Everything that is made of what was written of a run."""
    view = run.look()
    summary(view)
    why_untested(view)
    ranking.is_complete(view)
    ranking.best_value(view)
    ranking.best_trials(view)
    Report(view, run.address).as_json()
    assert view.plan.devices_per_trial
    for trial in view.trials:
        trial.spec()
        trial.curve(view.objective)
        assert trial.saved_best is None


def changed(storage: Storage, key: str, content: bytes) -> str:
    """What is said of the run if one of its documents has this content; "" if it is read."""
    before = storage.get(key)
    assert before is not None
    storage.put(key, content)
    try:
        read_all(Run(storage, "run"))
        if key in DOCUMENTS[:2]:  # it takes a while
            Run(storage, "run").look().spec()
    except RunError as error:
        return str(error)
    finally:
        storage.put(key, before)
    return ""


def test_all_of_it_can_be_read(search: Storage) -> None:
    read_all(Run(search, "run"))


@pytest.mark.parametrize("key", DOCUMENTS)
@pytest.mark.parametrize(
    "content",
    [b"null", b"[]", b"3", b'"run"', b"[", b"\xff\x00\x80", b"[" * 10_000, b'{"a":' * 10_000, b"9" * 10_000, b"{}}"],
)
def test_what_is_no_document_is_named(key: str, content: bytes, search: Storage) -> None:
    said = changed(search, key, content)
    assert said.startswith(f"{key} is damaged: ")
    assert "\n" not in said
    read_all(Run(search, "other"))


@pytest.mark.parametrize("key", DOCUMENTS)
def test_what_another_version_wrote_is_named(key: str, search: Storage) -> None:
    written = json.loads(search.get(key) or b"")
    without = {name: value for name, value in written.items() if name != "format"}
    for other in ({}, without, {**written, "format": 2}, {**written, "format": None}):
        said = changed(search, key, json.dumps(other).encode())
        assert said == f"{key} was written by another version of Raygen, which alone can read it"
    assert f"{key} is damaged: further: " in changed(search, key, json.dumps({**written, "further": 1}).encode())


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 10**400, 1e308, float("inf"), float("nan"), "", "x", "\0", [], {}, [[]], {"": None}]),
)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for name, value in items:
        yield (*path, name)
        yield from places(value, (*path, name))


@given(data=st.data(), key=st.sampled_from(DOCUMENTS), value=ODD, is_removed=st.booleans())
@settings(max_examples=60)
def test_any_value_that_is_odd_is_read_or_its_document_is_named(
    data: st.DataObject, key: str, value: Any, is_removed: bool, search: Storage
) -> None:
    document = json.loads(search.get(key) or b"")
    odd = copy.deepcopy(document)
    *path, last = data.draw(st.sampled_from(list(places(document))))
    parent = odd
    for name in path:
        parent = parent[name]
    if is_removed:
        del parent[last]
    else:
        parent[last] = value
    said = changed(search, key, json.dumps(odd).encode())
    assert_read_or_named(key, said)


NAMES = st.sampled_from(
    ["format", "spec", "version", "model", "name", "data", "source", "training", "epochs", "search", "trials", "best"]
)
SCALARS = st.one_of(
    ODD, st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["running", "finished", "ae"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(NAMES, st.text(max_size=3)), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(data=st.data(), key=st.sampled_from(DOCUMENTS), value=JSON)
@settings(max_examples=60)
def test_any_json_anywhere_in_a_document_is_read_or_the_document_is_named(
    data: st.DataObject, key: str, value: Any, search: Storage
) -> None:
    odd = json.loads(search.get(key) or b"")
    path = data.draw(st.one_of(st.just(()), st.sampled_from(list(places(odd)))))
    if path:
        parent = odd
        for name in path[:-1]:
            parent = parent[name]
        parent[path[-1]] = value
        if isinstance(parent, dict):
            parent |= data.draw(st.dictionaries(NAMES, JSON, max_size=1))
    assert_read_or_named(key, changed(search, key, json.dumps(odd if path else value).encode()))


@given(data=st.data(), key=st.sampled_from(DOCUMENTS), junk=st.binary(max_size=20))
@settings(max_examples=60)
def test_any_bytes_anywhere_in_a_document_are_read_or_the_document_is_named(
    data: st.DataObject, key: str, junk: bytes, search: Storage
) -> None:
    """Junk in the place of a part of it, to its end or not, or of all of it."""
    content = search.get(key) or b""
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    is_whole = data.draw(st.booleans())
    assert_read_or_named(key, changed(search, key, junk if is_whole else content[:first] + junk + content[last:]))


def assert_read_or_named(key: str, said: str) -> None:
    assert said == "" or said.startswith((f"{key} ", "the spec of run ", "the spec of trial "))
    assert "\n" not in said


def test_a_document_that_is_missing_is_named(search: Storage) -> None:
    content = search.get("run/attempts/0002/result.json") or b""
    attempt = Attempt.begin(search, "run", 3)
    assert attempt is not None
    attempt.close()
    try:
        search.delete(["run/attempts/0002/result.json"])
        with pytest.raises(RunError, match=r"^run/attempts/0002/result\.json is missing: run is no whole run$"):
            run_of(attempt).look()
    finally:
        search.put("run/attempts/0002/result.json", content)
        search.delete(["run/attempts/0003.json"])


def test_a_run_of_an_earlier_version_is_refused_in_one_line(folder: Storage) -> None:
    """It had files of other names, and a run.json without a format."""
    folder.put("old/run.json", b'{"kind": "train", "objective": "val_mse", "spec": {}}')
    folder.put("old/state.json", b'{"state": "finished"}')
    with pytest.raises(RunError, match=r"^old/run\.json was written by another version of Raygen, which alone can"):
        Run.open("old", folder).look()
