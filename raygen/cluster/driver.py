"""The process that runs one job on the cluster: `python -m raygen.cluster.driver RUN [ADDRESS]`.

Whoever started it holds its standard input open, and it stops when that closes: a job in the foreground ends with
its terminal, however that one ends. SIGINT and SIGTERM stop it too. Trials then write their checkpoints first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from filelock import Timeout

from raygen import results
from raygen.cluster import session
from raygen.cluster.tune import run_trials
from raygen.errors import JobFailedError, RaygenError
from raygen.runs import Run

LOCK_TIMEOUT_S = 5.0


def main(folder: str, address: str | None = None) -> int:
    """Run the job in `folder` to its end, leaving its state there; returns the exit code."""
    run = Run(Path(folder))
    try:
        with run.lock().acquire(timeout=LOCK_TIMEOUT_S):
            return _run(run, address)
    except Timeout:
        print(f"{run.name} is being run by another process", file=sys.stderr)
        return 2


def _run(run: Run, address: str | None) -> int:
    run.clear_stop()
    run.set_status("running")
    threading.Thread(target=_stop_with_parent, args=(run,), daemon=True).start()
    try:
        session.connect(address, run.plan)
        _stop_on_signals(run)
        run_trials(run, run.spec())
        results.collect_best(run)
        _conclude(run)
    except RaygenError as error:
        run.set_status("failed", str(error), exit_code=error.exit_code)
    finally:
        if run.status().state == "running":
            run.set_status("failed", f"an error in Raygen itself: its traceback is in {run.log}", exit_code=1)
        run.write_summary()
    return run.status().exit_code


def _conclude(run: Run) -> None:
    records = run.records()
    if run.should_stop() and not run.is_complete():
        run.set_status("interrupted", "stopped on request; what was trained is kept", exit_code=130)
    elif all(record.state == "failed" for record in records):
        raise JobFailedError(f"every trial failed: {records[0].reason}")
    else:
        run.set_status("finished")


def _stop_on_signals(run: Run) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        run.ask_to_stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _stop_with_parent(run: Run) -> None:
    # Read past Python's buffer: its lock, held by this thread, would break the interpreter's shutdown.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    run.ask_to_stop()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
