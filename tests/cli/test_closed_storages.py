"""Listings do not fail for what they may not read: a shared queue, and runs whose storage is closed, away or damaged.

Everything runs in a process for which permissions hold, as they do not for root unless it gives that up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from raygen.capacity import Capacity
from raygen.plan import Plan
from raygen.queue.job import JobState, Request
from raygen.queue.store import Store
from raygen.record.attempt import Attempt
from raygen.record.run import Run
from raygen.spec import TrainSpec
from raygen.storage import Storage

BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""What lets permissions hold for root too."""

pytestmark = pytest.mark.skipif(
    bool(BOUND) and not shutil.which(BOUND[0]), reason="permissions hold for root with setpriv only"
)

CLOSED = ("storage", "parent", "run", "document", "lock", "attempts", "away", "bucket", "damaged")
"""What keeps a run from being read, which is also what its job is called."""


def submit(store: Store, name: str, storage: str, *, ended: bool) -> None:
    about = {"kind": "train", "model": "ae", "data": "digits", "objective": "val_mse", "user": "alice"}
    devices = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
    store.submit(Request(name=name, storage=storage, cluster="somewhere", **about, **devices))
    [dispatcher] = store.dispatchers()
    job = store.claim(dispatcher.id)
    assert job is not None
    job = store.move(job, JobState.RUNNING)
    if ended:
        store.move(job, JobState.FAILED, reason="it broke")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A shared queue with running and failed jobs of all these, and one that anybody may read."""
    folder = tmp_path_factory.mktemp("closed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYGEN_DB", f"sqlite:///{folder}/queue.sqlite")
        fill(folder)
    yield folder
    for closed in (folder / "storage", folder / "parent"):
        closed.chmod(0o700)  # so that pytest can remove them


def make_run(storage: Path, name: str) -> None:
    """A run whose first attempt has begun."""
    plan = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    Run.create(Storage(storage), "train", TrainSpec.create("ae", {}), plan, "min", name=name)
    attempt = Attempt.begin(Storage(storage), name, 1)
    assert attempt is not None
    attempt.set_status("running")
    attempt.close()


def fill(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "home").mkdir()
    store = Store.open(Storage(folder / "mine"))
    store.register("somewhere", host="here", pid=1)
    store.saw("somewhere", Capacity.of_machine(gpus=0, cpus=100, where="here"))
    for kind in ("open", *CLOSED):
        storage = folder / ("parent/inner" if kind == "parent" else kind)
        storage.mkdir(parents=True)
        for ended in (False, True):
            name = f"{kind}-{'ended' if ended else 'runs'}"
            make_run(storage, name)
            address = "s3://bucket/runs?endpoint=http://127.0.0.1:1" if kind == "bucket" else str(storage)
            submit(store, name, address, ended=ended)
            close(kind, storage / name)
        if kind in ("storage", "parent"):
            (folder / kind).chmod(0)
        if kind == "away":
            storage.rename(folder / "elsewhere")


def close(kind: str, run: Path) -> None:
    if kind == "run":
        run.chmod(0)
    elif kind == "document":
        (run / "run.json").chmod(0)
    elif kind == "lock":
        (run / "driver.lock").touch(mode=0o000)
    elif kind == "attempts":
        (run / "attempts").chmod(0)
    elif kind == "damaged":
        (run / "run.json").write_text("no json")


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    stdout: str
    stderr: str
    raised: str
    """What escaped it; nothing if it ended as it should."""


IN_ONE_PROCESS = """
import json, sys
from typer.testing import CliRunner
from cli.main import app

for line in sys.stdin:
    said = CliRunner().invoke(app, line.split())
    raised = "" if said.exception is None or isinstance(said.exception, SystemExit) else repr(said.exception)
    print(json.dumps([said.exit_code, said.stdout, said.stderr, raised]))
"""


def raygen(place: Path, *commands: str, **environment: str) -> list[Said]:
    """What commands come to if permissions hold, all in one process."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("RAYGEN_", "AWS_", "XDG_"))}
    done = subprocess.run(
        [*BOUND, sys.executable, "-c", IN_ONE_PROCESS],
        cwd="/",
        env={
            **bare,
            "HOME": str(place / "home"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RAYGEN_DB": f"sqlite:///{place}/queue.sqlite",
            "RAYGEN_STORAGE": str(place / "mine"),
            "AWS_EC2_METADATA_DISABLED": "true",
            **environment,
        },
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    return [Said(*json.loads(line)) for line in done.stdout.splitlines()]


def test_ls_has_a_row_for_each_and_one_line_about_what_it_could_not_read(place: Path) -> None:
    table, printed = raygen(place, "ls", "ls -o json")
    assert (table.code, table.raised) == (0, "")
    rows = {row.split()[0]: row for row in table.stdout.splitlines()[1:]}
    assert set(rows) == {f"{kind}-{how}" for kind in ("open", *CLOSED) for how in ("runs", "ended")}
    assert "–" in rows["storage-runs"]
    assert "–" not in rows["open-runs"]
    [line] = table.stderr.splitlines()
    assert "cannot" in line
    assert f"; {len(CLOSED) - 1} more of these runs cannot be read" in line
    assert (printed.code, printed.stderr) == (0, "")
    assert len(json.loads(printed.stdout)) == 2 * (len(CLOSED) + 1)


def test_what_the_queue_knows_of_a_closed_run_is_shown(place: Path) -> None:
    names = [(f"{kind}-{how}", told) for kind in CLOSED for how, told in (("runs", "running"), ("ended", "it broke"))]
    said = raygen(place, *(f"show {name}{form}" for name, _ in names for form in ("", " -o json")))
    for (name, told), shown, printed in zip(names, said[::2], said[1::2], strict=True):
        assert (shown.code, shown.raised) == (0, ""), name
        assert told in shown.stdout, name
        assert len(shown.stderr.splitlines()) == 2, name
        assert (printed.code, json.loads(printed.stdout)["job"]["job"]) == (0, name)


def test_other_commands_say_in_one_line_what_they_could_not_read(place: Path) -> None:
    asked = ("logs {}", "wait {}", "compare {} open-ended", "sample {}", "show {} --why")
    commands = [command.format(f"{kind}-ended") for kind in CLOSED for command in asked]
    commands += [f"show no-such-run --storage {place / kind}" for kind in CLOSED]
    for command, said in zip(commands, raygen(place, *commands), strict=True):
        assert not said.raised, command
        assert said.code in (0, 1, 2), command
        assert len(said.stderr.splitlines()) <= 1, (command, said.stderr)


def test_a_storage_that_is_closed_itself_is_one_line(place: Path) -> None:
    for closed in (place / "storage", place / "parent/inner"):
        [status] = raygen(place, "status", RAYGEN_STORAGE=str(closed))
        assert (status.code, status.stderr, status.raised) == (0, "", ""), "the queue is open"
        for said in raygen(place, "ls", "status", "show x", "wait x", RAYGEN_DB="", RAYGEN_STORAGE=str(closed)):
            assert said.code in (1, 2)
            assert not said.raised
            assert len(said.stderr.splitlines()) == 1, said.stderr


def test_who_may_only_read_a_run_sees_whether_it_is_alive(place: Path) -> None:
    """Its lock can be asked for without a permission to write, and nothing is made by asking."""
    storage = place / "readable"
    make_run(storage, "job")
    with FileLock(storage / "job/driver.lock"):
        for path in (*storage.rglob("*"), storage):
            path.chmod(0o500 if path.is_dir() else 0o400)
        try:
            [said] = raygen(place, "show job -o json", RAYGEN_STORAGE=str(storage))
        finally:
            for path in (storage, *storage.rglob("*")):
                path.chmod(0o700)
    assert (said.code, said.stderr, said.raised) == (0, "", "")
    assert json.loads(said.stdout)["state"] == "running"
