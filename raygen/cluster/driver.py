"""The process that runs an attempt at a job, on the cluster: `python -m raygen.cluster.driver RUN ATTEMPT`.

The dispatcher submits it to Ray Jobs. It may run only while its attempt is the run's current one and no other
process holds the run. SIGTERM lets every trial end at its next sync, with a checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import ray
from filelock import Timeout

from raygen import results
from raygen.cluster import log
from raygen.cluster.tune import lost_trials, run_trials
from raygen.errors import JobFailedError, ProcessLostError, RaygenError
from raygen.runs import Run

LOCK_TIMEOUT_S = 60.0
"""Seconds that a process of an earlier attempt, cut off from its cluster, may take to end."""

NOT_MINE = 3
"""The exit code of a driver that may not run: it leaves the run folder alone."""


def main(folder: str, attempt: str) -> int:
    """Run the job in `folder` to its end, leaving its state there; returns the exit code."""
    run = Run(Path(folder))
    try:
        with run.lock().acquire(timeout=LOCK_TIMEOUT_S):
            if not run.is_attempt(int(attempt)):
                print(f"attempt {attempt} at {run.name} is over", file=sys.stderr)
                return NOT_MINE
            with log.kept(run.log):
                return _run(run)
    except Timeout:
        print(f"{run.name} is being run by another process", file=sys.stderr)
        return NOT_MINE


def _run(run: Run) -> int:
    run.set_status("running")
    try:
        run.reopen(only=ProcessLostError.cause)
        _join_cluster(run)
        # Only now: Ray has put its own answer to SIGTERM in the place of any other.
        _stop_on_signals(run)
        run_trials(run, run.spec())
        results.collect_best(run)
        conclude(run)
    except RaygenError as error:
        run.set_status("failed", str(error), exit_code=error.exit_code, cause=error.cause)
    finally:
        if run.status().state == "running":
            run.set_status("failed", f"an error in Raygen itself: its traceback is in {run.log}", exit_code=1)
        run.write_summary()
    return run.status().exit_code


def _join_cluster(run: Run) -> None:
    # Ray Jobs sets it. Left to look for a cluster, Ray may take another one of this machine; an actor of Ray Train's
    # does, finds that its controller is not there, and takes the training's devices away.
    address = os.environ["RAY_ADDRESS"]
    everywhere = {"env_vars": {"RAY_ADDRESS": address}} if run.plan.workers > 1 else None
    ray.init(address=address, runtime_env=everywhere, logging_level=logging.ERROR)


def conclude(run: Run) -> None:
    """Write down what the attempt came to; raises ProcessLostError if lost trials are to go on in another one.

    Raises JobFailedError if there is no result.
    """
    if run.should_stop() and not run.is_complete():
        run.set_status("interrupted", "stopped on request; what was trained is kept", exit_code=130)
        return
    statuses = [trial.status() for trial in run.trials()]
    if lost := lost_trials(run):
        what = f"{len(lost)} of {len(statuses)} trials lost, the last one because: " if run.kind == "tune" else ""
        raise ProcessLostError(what + lost[-1].status().reason)
    # A search goes on past a trial that was stopped for its health; a training has nothing else to go on with.
    useless = ("failed",) if run.kind == "tune" else ("failed", "stopped")
    if any(status.state not in useless for status in statuses):
        run.set_status("finished")
        return
    last = statuses[-1]
    failure = JobFailedError(
        last.reason if len(statuses) == 1 else f"every trial failed, the last one because: {last.reason}"
    )
    failure.cause = last.cause
    raise failure


def _stop_on_signals(run: Run) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        run.ask_to_stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
