"""An attempt that writes as fast as it can, of a trial that never ends: `-m tests.record.sleeper STORAGE RUN ATTEMPT`.

It begins at the first line on standard input, answers with a line when it has begun, and writes about the trial from
the next line on. Every epoch's metric is the number of the attempt. Told to stop, it leaves all that an attempt can.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing

from raygen.record.attempt import Attempt
from raygen.record.trial import TrialWriter
from raygen.storage import Storage
from raygen.training.loop import Epoch
from tests.searches import best_facts

EPOCH_EVERY_S = 0.02


def main(address: str, run: str, number: str) -> None:
    """Write until somebody wants it to end."""
    sys.stdin.readline()
    attempt = Attempt.begin(Storage(address), run, int(number))
    assert attempt is not None
    print("begun", flush=True)
    sys.stdin.readline()
    with closing(attempt):
        attempt.set_status("running")
        if number == "1":
            attempt.new_trial(1, {}, attempt.look().spec())
        with closing(TrialWriter.begin(attempt.place(1))) as writer:
            _train(attempt, writer)
            writer.set_state("finished")
        attempt.put_best([(best_facts(), {"model.safetensors": b"late"})])
        attempt.set_status("finished")


def _train(attempt: Attempt, writer: TrialWriter) -> None:
    writer.set_state("running")
    writer.fetch_checkpoint()
    epoch = int(writer.checkpoint.read_text()) if writer.checkpoint.exists() else 0
    print(f"goes on from {epoch}", flush=True)
    while not writer.should_stop():
        epoch += 1
        # In the place of the one before, as a training does.
        partial = writer.checkpoint.with_suffix(".partial")
        partial.write_text(str(epoch))
        partial.replace(writer.checkpoint)
        metrics = {"val_mse": float(attempt.number)}
        writer.record_epoch(Epoch(epoch=epoch, step=epoch, metrics=metrics, train_s=epoch, is_best=True))
        writer.record_checkpoint(epoch, epoch)
        time.sleep(EPOCH_EVERY_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
