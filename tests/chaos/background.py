"""What the processes do that chaos befalls: dispatchers, and a person who lists the jobs all the time."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import typer.main

from cli.main import app
from raygen.errors import QueueError
from raygen.queue import dispatcher, job, store
from raygen.queue.dispatcher import Dispatcher
from raygen.queue.store import Store
from raygen.storage import Storage
from tests.chaos.cluster_server import RemoteCluster
from tests.queue.making import CLUSTER

LEASE_S = 5.0
"""Short, so that what it makes possible happens often."""

STOP_GRACE_S, LONGEST_STOP_S, FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 3.0, 0.2, 2.0
LOOK_EVERY_S = 0.25


def run_with(environment: Mapping[str, str], main: Callable[..., None], *arguments: object) -> None:
    """Run something with the environment of whoever starts it, not of the process that all are forked from."""
    os.environ.clear()
    os.environ.update(environment)
    main(*arguments)


def dispatch(cluster: Path, log: Path) -> None:
    """Dispatch until asked to end, or killed; what nobody planned for ends the process with exit code 1."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    store.LEASE_S = LEASE_S
    if hasattr(dispatcher, "LEASE_S"):
        dispatcher.LEASE_S = LEASE_S
    dispatcher.STOP_GRACE_S, dispatcher.LONGEST_STOP_S = STOP_GRACE_S, LONGEST_STOP_S
    job.FIRST_BACKOFF_S, job.LONGEST_BACKOFF_S = FIRST_BACKOFF_S, LONGEST_BACKOFF_S
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ending.append(number))
    storage, looking = Storage(os.environ["RAYGEN_STORAGE"]), None
    while not ending:
        try:
            # A service is started again until it finds its database.
            looking = looking or Dispatcher(Store.open(storage), RemoteCluster(cluster), CLUSTER)
            looking.tick()
        except QueueError as error:
            logging.warning("%s", error)
        time.sleep(LOOK_EVERY_S)
    if looking is not None:
        looking.leave()


def list_jobs(told: Path) -> None:
    """Type `raygen ls` again and again, and write down what does not work: a line of JSON each, the last a count."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ending.append(number))
    command = typer.main.get_command(app)
    times = 0
    with told.open("a", buffering=1) as lines:
        while not ending:
            began_at = time.time()
            output = io.StringIO()
            try:
                with redirect_stdout(output), redirect_stderr(output):
                    command(["ls", "-n", "1000"])
            except SystemExit as ended:
                outcome = str(ended.code)
            except Exception as error:  # noqa: BLE001 - whatever it is, a person would see it
                outcome = f"{type(error).__name__}: {error}"
            if outcome != "0":
                failure = {"began_at": began_at, "ended_at": time.time(), "outcome": outcome}
                lines.write(json.dumps({**failure, "output": output.getvalue()[-500:]}) + "\n")
            times += 1
            time.sleep(0.2)
        lines.write(json.dumps({"times": times}) + "\n")
