"""The process that runs an attempt at a job, on the cluster: `python -m raygen.cluster.driver STORAGE RUN ATTEMPT`.

The dispatcher submits it to Ray Jobs. It runs only if nobody has begun this attempt or a later one, and no other
process holds the run. SIGTERM lets every trial end at its next sync, with a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import ray
from filelock import Timeout
from ray.exceptions import RayError
from ray.tune import TuneError

from raygen.cluster import gpu_sharing, judging, log
from raygen.cluster.session_logs import SessionLogs
from raygen.cluster.tune import lost_trials, run_trials
from raygen.collection import collect_best
from raygen.errors import JobFailedError, ProcessLostError, RaygenError, RunInterruptedError
from raygen.plan import Plan
from raygen.record import ranking
from raygen.record.attempt import Attempt
from raygen.record.documents import ENDED
from raygen.record.layout import RunKeys
from raygen.record.reading import WITHOUT_A_WORD, lock
from raygen.record.view import Trial
from raygen.storage import Storage

LOCK_TIMEOUT_S = 60.0
"""Seconds that a process of an earlier attempt, cut off from its cluster, may take to end."""

NOT_MINE = 3
"""The exit code of a driver that may not run: it leaves the record alone."""

JOIN_TRIES = 2
JOIN_TRIES_VARIABLE = "RAY_gcs_server_port_wait_time_s"
"""How often Ray tries to reach a cluster; each of its 20 tries would take 40 s, with the run held."""


def main(address: str, name: str, number: str) -> int:
    """Run the job to its end, leaving its state in the record; returns the exit code."""
    storage = Storage(address)
    try:
        held = _held(storage, name)
    except Timeout:
        print(f"{name} is being run by another process", file=sys.stderr)
        return NOT_MINE
    with held:
        attempt = Attempt.begin(storage, name, int(number))
        if attempt is None:
            print(f"attempt {number} at {name} is over", file=sys.stderr)
            return NOT_MINE
        with contextlib.closing(attempt), log.kept(attempt.add_to_log):
            return _run(attempt)


def _held(storage: Storage, name: str) -> contextlib.AbstractContextManager[object]:
    """What tells everybody that the run is being run, in a folder; raises Timeout if another process holds it."""
    if storage.folder is None:
        return contextlib.nullcontext()
    return lock(storage, RunKeys(name)).acquire(timeout=LOCK_TIMEOUT_S)


def _run(attempt: Attempt) -> int:
    attempt.set_status("running")
    try:
        _work(attempt)
    except (SystemExit, KeyboardInterrupt):
        # Ray's own answer to a signal, until it is ours. Who sent it may have said why.
        why = attempt.why_stopped() if attempt.should_stop() else "by a signal"
        attempt.set_status("interrupted", f"stopped {why}; what was trained is kept", RunInterruptedError.exit_code)
    except RunInterruptedError as error:
        attempt.set_status("interrupted", str(error), exit_code=error.exit_code)
    except RaygenError as error:
        attempt.set_status("failed", str(error), exit_code=error.exit_code, cause=error.cause)
    finally:
        if attempt.status.state == "running":
            traceback.print_exc()  # while what is printed is still kept
            reason = f"an error in Raygen itself: `raygen logs {attempt.run}` shows its traceback"
            attempt.set_status("failed", reason, exit_code=1)
    return attempt.status.exit_code


def _work(attempt: Attempt) -> None:
    """Train and keep the best; raises RunInterruptedError, and a RaygenError whose cause says whether to try again."""
    view = attempt.look()
    with _joined(view.plan):
        # Only now: Ray has put its own answer to SIGTERM in the place of any other.
        _stop_on_signals(attempt)
        spec = view.spec()
        run_trials(attempt, spec, gpu_sharing.shared(attempt, view, spec, device="cuda"))
        with judging.on_devices(attempt, view.plan) as elsewhere:
            collect_best(attempt, elsewhere)
        conclude(attempt)


@contextlib.contextmanager
def _joined(plan: Plan) -> Iterator[None]:
    """Be a process of the cluster, and tell what its own processes say of problems if the block does not succeed.

    Raises ProcessLostError if the cluster cannot be joined, or is lost.
    """
    # Ray Jobs sets it. Left to look for a cluster, Ray may take another one of this machine; an actor of Ray Train's
    # does, finds that its controller is not there, and takes the training's devices away.
    address = os.environ["RAY_ADDRESS"]
    everywhere = {"env_vars": {"RAY_ADDRESS": address}} if plan.workers > 1 else None
    os.environ.setdefault(JOIN_TRIES_VARIABLE, str(JOIN_TRIES))
    try:
        ray.init(address=address, runtime_env=everywhere, logging_level=logging.ERROR)
    except (OSError, RuntimeError, RayError) as error:
        raise ProcessLostError(f"the cluster at {address} cannot be joined: {_last_line(error)}") from error
    logs = SessionLogs(Path(ray._private.worker._global_node.get_logs_dir_path()))
    try:
        with _explained():
            yield
    except BaseException:
        for line in logs.problems():
            print(line, flush=True)
        raise


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raise what Ray raises as its cluster is lost as ProcessLostError."""
    try:
        yield
    except (RayError, TuneError, ConnectionError) as error:
        # Tune raises what it met in a callback as an error of its own.
        met = error.__context__ if isinstance(error, TuneError) and error.__context__ else error
        if isinstance(met, RaygenError):
            raise met from error
        if not isinstance(met, (RayError, TuneError, ConnectionError)):
            raise
        traceback.print_exc()
        raise ProcessLostError(f"the cluster was lost: {_last_line(met)}") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


def conclude(attempt: Attempt) -> None:
    """Write down what the attempt came to; raises ProcessLostError if lost trials are to go on in another one.

    Raises RunInterruptedError if it was stopped before its end, JobFailedError if there is no result.
    """
    view = attempt.look()
    left_off = any(trial.state == "interrupted" for trial in view.trials)
    if left_off or (attempt.should_stop() and not ranking.is_complete(view)):
        raise RunInterruptedError(f"stopped {attempt.why_stopped()}; what was trained is kept")
    if not view.trials:
        raise ProcessLostError("nothing of it is on record")
    if lost := [_ended(attempt, trial) for trial in lost_trials(view)]:
        what = f"{len(lost)} of {len(view.trials)} trials lost, the last one because: " if view.is_search else ""
        raise ProcessLostError(what + lost[-1].progress.reason)
    # A search goes on past a trial that was stopped for its health; a training has nothing else to go on with.
    useless = ("failed",) if view.is_search else ("failed", "stopped")
    if any(trial.state not in useless for trial in view.trials):
        attempt.set_status("finished")
        return
    last = view.trials[-1].progress
    failure = JobFailedError(
        last.reason if len(view.trials) == 1 else f"every trial failed, the last one because: {last.reason}"
    )
    failure.cause = last.cause
    raise failure


def _ended(attempt: Attempt, trial: Trial) -> Trial:
    """A lost trial as it ended: some processes cannot even write down that they end."""
    if trial.state in ENDED:
        return trial
    return attempt.set_trial_state(trial.number, "failed", WITHOUT_A_WORD, ProcessLostError.cause)


def _stop_on_signals(attempt: Attempt) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        attempt.ask_to_stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
