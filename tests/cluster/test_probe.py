"""What keeps a node from running jobs, and when nodes are looked at."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

from raygen.cluster import node_check
from raygen.cluster.node_check import Found, NodeFacts, check, own_requirements, problems
from raygen.cluster.probe import ANSWER, ASKED, look_around
from raygen.errors import ResourceError
from raygen.queue.client import Submitted
from raygen.storage import PROBE, Storage

REQUIREMENTS = ["ray[tune]~=2.60", "torch>=2.9", "optuna>=4.5", "psycopg>=3.2; extra == 'postgres'"]
GOOD: dict[str, Any] = {
    "address": "10.0.0.1",
    "python": "3.12.4",
    "versions": {"ray": "2.60.1", "torch": "2.9.1+cu128", "optuna": "4.6.0"},
    "sees_storage": True,
}

FOLDER, BUCKET = "/shared", "s3://bucket/runs"


def judged(head: dict[str, Any], other: dict[str, Any], storage: str = FOLDER) -> dict[str, str]:
    """What is wrong with the two nodes; the one that is not the head comes first, as Ray may name it first."""
    nodes = {"other": NodeFacts(**GOOD | {"address": "10.0.0.2"} | other), "head": NodeFacts(**GOOD | head)}
    return problems(Found(head="head", nodes=nodes), REQUIREMENTS, Storage(storage))


def having(**versions: str | None) -> dict[str, Any]:
    return {"versions": GOOD["versions"] | versions}


@pytest.mark.parametrize("storage", [FOLDER, BUCKET])
def test_nodes_that_have_the_same_pass(storage: str) -> None:
    assert judged({}, {}, storage) == {}


@pytest.mark.parametrize(
    "other",
    [{"python": "3.12.9"}, having(torch="2.9.1+cpu"), having(optuna="5.0.0"), having(optuna="4.6.0.dev1")],
    ids=["patch of Python", "build of torch", "newer dependency", "development version"],
)
def test_what_does_not_matter_may_differ(other: dict[str, Any]) -> None:
    assert judged({}, other) == {}


@pytest.mark.parametrize(
    ("other", "what", "instead"),
    [
        (
            {"sees_storage": False, "storage_problem": "cannot write /shared/x: Permission denied"},
            "it cannot write /shared/x: Permission denied",
            "let the user whom Ray runs as there read and write in /shared",
        ),
        ({"python": "3.11.9"}, "it has Python 3.11.9 and the head 3.12.4", "use Python 3.12 on all nodes"),
        (having(ray="2.60.0"), "it has ray 2.60.0 and the head 2.60.1", "pip install ray==2.60.1"),
        (having(torch="2.10.0"), "it has torch 2.10.0 and the head 2.9.1+cu128", "pip install torch==2.9.1"),
        (having(optuna="4.4.0"), "requires optuna>=4.5 (it has 4.4.0)", "pip install 'optuna>=4.5'"),
        (
            having(optuna=None, torch=None),
            "requires torch>=2.9 (it has none), optuna>=4.5 (it has none)",
            "pip install 'torch>=2.9' 'optuna>=4.5'",
        ),
        ({"import_problem": "libcudart.so.12 is missing"}, "(libcudart.so.12 is missing)", "install its dependencies"),
        ({"sees_storage": False}, "it does not see /shared", "name with --storage a folder that all nodes see"),
        ({"lock_problem": "is not seen as taken there"}, "is not seen as taken there", "another folder"),
        ({"no_answer": "it was silent for 90 s"}, "it did not answer (it was silent for 90 s)", "try again"),
    ],
)
def test_a_problem_is_told_with_what_to_do_instead(other: dict[str, Any], what: str, instead: str) -> None:
    found = judged({}, other)
    assert list(found) == ["other"]
    assert what in found["other"]
    assert instead in found["other"].partition(what)[2]
    assert "\n" not in found["other"]


@pytest.mark.parametrize(
    ("other", "what", "instead"),
    [
        ({"sees_storage": False}, "it does not find in s3://bucket/runs what", "?endpoint="),
        (
            {"sees_storage": False, "storage_problem": "cannot read s3://bucket/runs/x: Access Denied"},
            "it cannot read s3://bucket/runs/x: Access Denied",
            "hold credentials that may read and write in that storage, or give the node a role that may",
        ),
    ],
)
def test_a_bucket_that_a_node_cannot_use_is_told_with_what_to_do(
    other: dict[str, Any], what: str, instead: str
) -> None:
    found = judged({}, other, BUCKET)
    assert list(found) == ["other"]
    assert what in found["other"]
    assert instead in found["other"].partition(what)[2]


def test_a_node_where_raygen_cannot_be_imported_is_not_said_to_lack_the_storage() -> None:
    other = {"import_problem": "libcudart.so.12 is missing", "sees_storage": False}
    assert "cannot be imported there (libcudart.so.12 is missing)" in judged({}, other, BUCKET)["other"]


def test_a_head_that_does_not_answer_is_the_first_problem_and_no_measure_for_others() -> None:
    assert list(judged({"no_answer": "its process died", "versions": {}, "python": ""}, {})) == ["head"]
    assert list(judged({"sees_storage": False}, {"sees_storage": False})) == ["head", "other"]


def put_question(storage: Storage) -> str:
    """Begin a probe, as the machine does that submits it; returns its place."""
    place = f"{PROBE}-of-a-test"
    storage.put(f"{place}/{ASKED}", place.encode())
    return place


def test_a_lock_that_nobody_holds_is_told_from_one_that_is_held(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    place = put_question(storage)
    lock = str(tmp_path / place / "lock")
    free = look_around(storage.url, place, lock, own_requirements())
    assert free["lock_problem"] == "is not seen as taken there"
    with FileLock(lock):
        held = look_around(storage.url, place, lock, own_requirements())
    facts = NodeFacts(address="10.0.0.1", **held)
    assert problems(Found(head="id", nodes={"id": facts}), own_requirements(), storage) == {}
    assert facts.python == platform.python_version()
    assert facts.versions["torch"] == version("torch")
    assert "psycopg" not in facts.versions, "a requirement of an extra is nobody's duty"


def test_a_node_without_the_storage_is_left_as_it_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    found = look_around(str(elsewhere), "place", str(elsewhere / "place" / "lock"), ["no-such-package>=1"])
    assert found["sees_storage"] is False
    assert found["versions"] == {"no-such-package": None}
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_holds_something_else_there_is_another(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    place = put_question(storage)
    storage.put(f"{place}/{ASKED}", b"another probe's")
    assert look_around(storage.url, place, None, [])["sees_storage"] is False


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_node_that_may_not_write_says_so(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    place = put_question(storage)
    (tmp_path / place).chmod(0o500)
    found = look_around(storage.url, place, None, [])
    assert (found["sees_storage"], "Permission denied" in found["storage_problem"]) == (False, True)


class Nodes:
    """A cluster without Ray; `answer` does what a probe does, and tells what it prints."""

    address = "http://head:8265"

    def __init__(self, *ids: str) -> None:
        self.ids = set(ids)
        self.probes: list[str] = []
        self.answer: Callable[[], str] = self.good

    def good(self, **bad: dict[str, Any]) -> str:
        versions = {"ray": version("ray"), "torch": version("torch")}
        nodes = {each: GOOD | {"versions": versions} | bad.get(each, {}) for each in sorted(self.ids)}
        return f"a warning\n{ANSWER}{json.dumps({'head': min(nodes), 'nodes': nodes})}\nanother\n"

    def node_ids(self) -> set[str]:
        return self.ids

    def submit_python(self, submission_id: str, arguments: list[str]) -> None:
        _, _, address, place, _ = arguments
        assert Storage(address).get(f"{place}/{ASKED}") == place.encode()
        self.probes.append(place)
        self.printed = self.answer()

    def submissions(self) -> dict[str, Submitted]:
        return {place.lstrip("."): Submitted("ended", "") for place in self.probes}

    def stop(self, submission_id: str) -> None:
        raise AssertionError("every probe ends by itself")

    def output(self, submission_id: str) -> str:
        return self.printed


@pytest.fixture
def cluster() -> Nodes:
    return Nodes("aaaaaaaaaaaa", "bbbbbbbbbbbb")


class Checked(NamedTuple):
    """A storage, and where this machine writes down what passed."""

    storage: Storage
    state: Path

    def check(self, cluster: Nodes) -> None:
        """Check, which leaves nothing in the storage."""
        try:
            check(cluster, self.storage, self.state)
        finally:
            assert self.storage.list("") == []

    @property
    def record(self) -> Path:
        """The only file that a check leaves."""
        [path] = self.state.iterdir()
        return path


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    (tmp_path / "state").mkdir()
    return Checked(Storage(tmp_path / "storage"), tmp_path / "state")


def test_nodes_that_passed_are_not_looked_at_again(cluster: Nodes, checked: Checked) -> None:
    checked.check(cluster)
    assert set(json.loads(checked.record.read_text())["nodes"]) == cluster.ids
    cluster.ids.remove("bbbbbbbbbbbb")
    checked.check(cluster)
    assert len(cluster.probes) == 1


def test_a_node_that_joined_later_is_looked_at(cluster: Nodes, checked: Checked) -> None:
    checked.check(cluster)
    cluster.ids.add("cccccccccccc")
    checked.check(cluster)
    checked.check(cluster)
    assert len(cluster.probes) == 2


def test_an_interrupted_probe_counts_for_nothing(cluster: Nodes, checked: Checked) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    cluster.answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        checked.check(cluster)
    assert list(checked.state.iterdir()) == []
    cluster.answer = cluster.good
    checked.check(cluster)
    assert len(cluster.probes) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept | {"checked_at": kept["checked_at"] - node_check.VALID_S},
        lambda kept: kept | {"raygen": "0.0.1"},
        lambda kept: kept | {"requirements": [*kept["requirements"], "another>=1"]},
        lambda kept: kept | {"nodes": None},
        lambda kept: "",
    ],
    ids=["a day old", "of another Raygen", "for other requirements", "damaged", "not a record"],
)
def test_a_record_that_says_nothing_of_today_is_made_again(
    change: Callable[[dict[str, Any]], Any], cluster: Nodes, checked: Checked
) -> None:
    checked.check(cluster)
    path = checked.record
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    checked.check(cluster)
    checked.check(cluster)
    assert len(cluster.probes) == 2


def test_half_a_record_is_made_again(cluster: Nodes, checked: Checked) -> None:
    checked.check(cluster)
    path = checked.record
    path.write_bytes(path.read_bytes()[:50])
    checked.check(cluster)
    assert len(cluster.probes) == 2


def test_nodes_with_a_problem_are_named_and_looked_at_again(cluster: Nodes, checked: Checked) -> None:
    blind = {"sees_storage": False}
    cluster.answer = lambda: cluster.good(bbbbbbbbbbbb=blind | {"address": "10.0.0.2"})
    with pytest.raises(ResourceError, match=r"^node 10\.0\.0\.2 of http://head:8265 cannot run jobs: it does not see"):
        checked.check(cluster)
    assert list(checked.state.iterdir()) == []
    cluster.answer = lambda: cluster.good(aaaaaaaaaaaa=blind, bbbbbbbbbbbb=blind)
    with pytest.raises(ResourceError, match=r"^node 10\.0\.0\.1 \(id aaaaaaaa\) of \S+ \(and 1 more node\) cannot"):
        checked.check(cluster)
    assert len(cluster.probes) == 2


def test_a_probe_that_cannot_run_tells_why(cluster: Nodes, checked: Checked) -> None:
    cluster.answer = lambda: "Traceback (most recent call last):\nModuleNotFoundError: No module named 'pydantic'\n"
    with pytest.raises(ResourceError, match=r"the head of .* cannot run jobs: .*'pydantic'; install Raygen's depend"):
        checked.check(cluster)


def test_two_submissions_at_once_do_not_disturb_each_other(cluster: Nodes, checked: Checked) -> None:
    other = Nodes(*cluster.ids)

    def meanwhile() -> str:
        check(other, *checked)
        assert checked.storage.list(cluster.probes[0]), "the other's keys are its own"
        return cluster.good()

    cluster.answer = meanwhile
    checked.check(cluster)
    assert cluster.probes != other.probes
    checked.check(cluster)
    assert len(cluster.probes) == 1
    assert checked.record.exists()
