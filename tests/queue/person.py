"""One person at a machine: `person.py USER UID`, started by root, does what a line of JSON says, and tells what came.

All that it needs is imported, and used once, while it is still root: the others may not read where Python lies.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fake_cluster import FakeCluster
from making import CLUSTER, queue_job
from typer.testing import CliRunner

from cli.main import app
from raygen import submission
from raygen.capacity import Capacity
from raygen.errors import RaygenError
from raygen.preparation import prepare_training
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.store import Store
from raygen.storage import Storage


class Person:
    """Somebody with a cluster to run jobs on, whose dispatcher starts jobs of theirs alone."""

    def __init__(self, name: str) -> None:
        self._name = name

    def begin(self, database: str) -> None:
        """Begin anew, with a queue in that database, or if there is none in each storage."""
        os.umask(0o022)
        os.environ["RAYGEN_DB"] = database
        self._cluster = FakeCluster(Path(tempfile.mkdtemp(dir=os.environ["HOME"])))
        self._dispatchers: dict[str, Dispatcher] = {}

    def queue(self, storage: str, name: str, **wanted: Any) -> str:
        """Queue a job with its run; returns its state."""
        return queue_job(Store.open(Storage(storage)), storage, name, user=self._name, **wanted).state

    def submit(self, storage: str, name: str | None) -> str:
        """Queue a job as the commands do; returns its name."""
        prepared = prepare_training("ae", {}, Capacity.of_machine(gpus=0, cpus=2, where="here"))
        store = Store.open(Storage(storage))
        submission.check_free(store, name)
        return submission.submit(store, Storage(storage), prepared, name=name, data=None, cluster=CLUSTER).name

    def tick(self, storage: str, looks: int = 1) -> None:
        """Have this person's dispatcher look so often."""
        for _ in range(looks):
            if storage not in self._dispatchers:
                store = Store.open(Storage(storage))
                self._dispatchers[storage] = Dispatcher(store, self._cluster, CLUSTER, user=self._name)
            self._dispatchers[storage].tick()

    def start(self, storage: str, name: str) -> None:
        """Have a submission of this person's cluster run."""
        self._cluster.start(name)
        self.tick(storage)

    def end(self, storage: str, name: str) -> None:
        """Have it end well."""
        self._cluster.end(name)
        self.tick(storage)

    def leave(self, storage: str) -> None:
        """End this person's dispatcher."""
        self._dispatchers.pop(storage).leave()

    def jobs(self, storage: str) -> dict[str, list[str]]:
        """State and reason of each job."""
        store = Store.open(Storage(storage), create=False)
        jobs = store.list()
        reasons = store.reasons(jobs)
        return {job.name: [job.state, reasons.get(job.id, job.reason)] for job in jobs}

    def command(self, *arguments: str) -> list[Any]:
        """Type a command; returns its exit code and all that it prints."""
        done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return [done.exit_code, done.output]

    def permissions(self, folder: str, *, mode: str, umask: str = "022") -> None:
        """Make a folder of this person's with these permissions, and what is made from now on with that umask."""
        os.umask(int(umask, 8))
        Path(folder).mkdir(exist_ok=True)
        Path(folder).chmod(int(mode, 8))


def warm_up(postgres: str) -> None:
    """Have all loaded that is loaded when it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder
        person, runs = Person("root"), f"{folder}/runs"
        if postgres:
            sa.create_engine(postgres).connect().close()
        person.begin("")
        person.queue(runs, "job")
        person.submit(runs, None)
        person.tick(runs)
        person.start(runs, "job")
        person.end(runs, "job")
        person.jobs(runs)
        for arguments in (["ls"], ["show", "job"], ["show", "nothing"]):
            person.command(*arguments, "--storage", runs)
        person.leave(runs)


def main(name: str, number: int) -> None:
    """Become a person, and do what is asked."""
    home = os.environ["HOME"]
    warm_up(os.environ.get("RAYGEN_TEST_POSTGRES", ""))
    os.setgroups([])
    os.setgid(number)
    os.setuid(number)
    os.environ.update(HOME=home, USER=name, LOGNAME=name)
    person = Person(name)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        what, arguments, options = json.loads(line)
        gc.collect()  # as if it were another process: SQLite goes on as connections to a file that are left began
        do: Callable[..., Any] = getattr(person, what)
        try:
            answer: list[Any] = ["done", do(*arguments, **options)]
        except RaygenError as error:
            answer = [type(error).__name__, str(error)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
