"""Two people of a machine, as the system tells them apart, with one queue and one storage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from queue_databases import DATABASES, fresh_database

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two people"),
    pytest.mark.slow,
]

ADA, BOB = ("ada", 61001), ("bob", 61002)


class RefusedError(Exception):
    """What Raygen told a person, with the name of its error in front."""


class Person:
    """Somebody in a process of their own; see person.py."""

    def __init__(self, name: str, number: int, home: Path) -> None:
        home.mkdir()
        os.chown(home, number, number)
        folders = {"HOME": home, "RAYGEN_STATE": home / "state", "RAYGEN_CACHE": home / "cache"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("person.py")), name, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **{name: str(folder) for name, folder in folders.items()}},
            text=True,
        )

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline() or "null") == "ready"

    def __call__(self, what: str, *arguments: Any, **options: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([what, arguments, options]), file=self._process.stdin, flush=True)
        how, answer = json.loads(self._process.stdout.readline())
        if how != "done":
            raise RefusedError(f"{how}: {answer}")
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Person, Person]]:
    """Ada and Bob, at home in folders that everybody can enter, unlike the test's own."""
    homes = Path(tempfile.mkdtemp(prefix="raygen-homes-", dir="/tmp"))
    homes.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, homes)
        people = [Person(name, number, homes / name) for name, number in (ADA, BOB)]
        for person in people:
            stack.callback(person.close)
        for person in people:
            person.wait_until_ready()
        yield people[0], people[1]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may write to."""
    place = Path(tempfile.mkdtemp(prefix="raygen-two-", dir="/tmp"))
    place.chmod(0o777)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def runs(place: Path) -> str:
    """A storage that everybody may write to."""
    runs = place / "runs"
    runs.mkdir()
    runs.chmod(0o777)
    return str(runs)


@pytest.fixture(params=DATABASES)
def people(
    request: pytest.FixtureRequest, both: tuple[Person, Person], tmp_path: Path
) -> Iterator[tuple[Person, Person]]:
    """Ada and Bob, who share a PostgreSQL, or the SQLite file of the storage that they share."""
    if request.param == "sqlite":
        yield begun(both, "")
        return
    with fresh_database(request.param, tmp_path) as url:
        yield begun(both, url.render_as_string(hide_password=False))


@pytest.fixture
def ada_and_bob(both: tuple[Person, Person]) -> tuple[Person, Person]:
    return begun(both, "")


def begun(both: tuple[Person, Person], database: str) -> tuple[Person, Person]:
    for person in both:
        person("begin", database)
    return both


def states(person: Person, runs: str) -> dict[str, str]:
    return {name: state for name, (state, _) in person("jobs", runs).items()}


def test_each_ones_dispatcher_starts_and_ends_their_own_jobs_alone(people: tuple[Person, Person], runs: str) -> None:
    ada, bob = people
    bob("permissions", f"{runs}/his", mode="700", umask="077")  # closed to her, as all that he makes from now on
    assert ada("queue", runs, "hers") == "queued"
    assert bob("queue", runs, "his") == "queued"
    ada("tick", runs, looks=3)
    assert states(ada, runs) == {"hers": "starting", "his": "queued"}
    assert "dispatcher" in ada("jobs", runs)["his"][1]
    bob("tick", runs, looks=2)
    assert states(bob, runs) == {"hers": "starting", "his": "starting"}
    bob("start", runs, "his")
    # One who goes leaves jobs to the next one of theirs.
    bob("leave", runs)
    ada("tick", runs, looks=3)
    assert states(ada, runs)["his"] == "running"
    bob("tick", runs)
    bob("end", runs, "his")
    ada("start", runs, "hers")
    ada("end", runs, "hers")
    assert states(ada, runs) == states(bob, runs) == {"hers": "succeeded", "his": "succeeded"}


def test_devices_are_counted_over_the_jobs_of_both(people: tuple[Person, Person], runs: str) -> None:
    ada, bob = people
    ada("queue", runs, "hers", cpus_each=3)
    ada("tick", runs)
    bob("queue", runs, "his", cpus_each=2)
    bob("tick", runs, looks=2)
    assert bob("jobs", runs)["his"] == ["queued", "waiting for 1 of 2 CPU cores"]


def test_what_waits_of_one_who_has_no_dispatcher_holds_back_nobody(people: tuple[Person, Person], runs: str) -> None:
    ada, bob = people
    bob("queue", runs, "his", cpus_each=4, priority=9)
    ada("queue", runs, "hers")
    ada("tick", runs)
    assert states(ada, runs) == {"hers": "starting", "his": "queued"}


def test_a_name_that_the_other_has_is_refused_and_leaves_nothing(
    people: tuple[Person, Person], place: Path, runs: str
) -> None:
    ada, bob = people
    ada("submit", runs, "job")
    with pytest.raises(RefusedError, match=r"^JobError: there is a job 'job' already; choose another --name"):
        bob("submit", runs, "job")
    made_up = {ada("submit", runs, None), ada("submit", runs, None), bob("submit", runs, None)}
    assert len(made_up) == 3
    assert states(bob, runs).keys() == {"job", *made_up}


def test_a_run_of_the_others_that_has_no_job_keeps_its_name(
    ada_and_bob: tuple[Person, Person], place: Path, runs: str
) -> None:
    ada, bob = ada_and_bob
    ada("begin", f"sqlite:///{place}/hers.sqlite")
    ada("queue", runs, "job")
    with pytest.raises(RefusedError, match=r"^RunError: there is a run 'job' in .* already; choose another --name"):
        bob("submit", runs, "job")


def test_listings_show_the_others_jobs_though_their_runs_are_closed(people: tuple[Person, Person], runs: str) -> None:
    ada, bob = people
    bob("permissions", f"{runs}/his", mode="700", umask="077")
    bob("queue", runs, "his")
    bob("tick", runs)
    bob("start", runs, "his")
    ada("queue", runs, "hers")
    code, printed = ada("command", "ls", "--storage", runs)
    assert code == 0
    assert "his" in printed
    assert "hers" in printed


# The SQLite file of a storage


def test_a_queue_in_a_shared_folder_is_open_to_whom_the_folder_is(
    ada_and_bob: tuple[Person, Person], runs: str
) -> None:
    ada, bob = ada_and_bob
    ada("permissions", f"{runs}/hers", mode="755", umask="077")
    ada("queue", runs, "hers")
    bob("queue", runs, "his")
    ada("queue", runs, "another")
    assert states(ada, runs).keys() == states(bob, runs).keys() == {"hers", "his", "another"}
    for path in Path(runs).glob("queue.sqlite*"):
        assert path.stat().st_mode & 0o777 == 0o666


def test_a_queue_that_was_made_before_its_folder_was_shared_opens_with_its_owners_next_command(
    ada_and_bob: tuple[Person, Person], place: Path
) -> None:
    ada, bob = ada_and_bob
    runs = str(place / "runs")
    ada("queue", runs, "hers")
    ada("permissions", runs, mode="777")
    told = (
        r"^QueueError: .* cannot be used: .*; .*/runs/queue\.sqlite is user 61001's and closed to you: once .*`chmod"
    )
    with pytest.raises(RefusedError, match=told):
        bob("submit", runs, "his")
    assert not Path(runs, "his").exists()
    ada("jobs", runs)
    bob("submit", runs, "his")
    assert states(ada, runs).keys() == {"hers", "his"}


@pytest.mark.parametrize("mode", ["755", "700"])
def test_what_is_closed_is_told_in_one_line(ada_and_bob: tuple[Person, Person], place: Path, mode: str) -> None:
    ada, bob = ada_and_bob
    runs = str(place / "runs")
    ada("queue", runs, "hers")
    ada("permissions", runs, mode=mode)
    with pytest.raises(RefusedError, match=r"^(Queue|Storage)Error: .*(closed to you|Permission denied)"):
        bob("submit", runs, "his")
    code, printed = bob("command", "ls", "--storage", runs)
    assert (code, "closed to you" in printed, printed.count("Error")) == (1, True, 0)


def test_a_queue_in_a_folder_of_ones_own_stays_ones_own(ada_and_bob: tuple[Person, Person], place: Path) -> None:
    ada, _ = ada_and_bob
    ada("queue", str(place / "ada" / "runs"), "hers")
    assert (place / "ada" / "runs" / "queue.sqlite").stat().st_mode & 0o777 == 0o644
