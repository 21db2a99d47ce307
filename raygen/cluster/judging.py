"""The final judging of a job with GPUs: the trials have left theirs, and the process that runs the job has none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from raygen import data, device, interruption
from raygen.collection import Examiner, Judging
from raygen.errors import OutOfMemoryError, ProcessLostError, RunInterruptedError
from raygen.metrics import HeldOut
from raygen.plan import Plan
from raygen.record import checkpoints
from raygen.record.attempt import Attempt
from raygen.record.documents import Judged
from raygen.record.run import Run
from raygen.record.view import Trial
from raygen.storage import Storage

LOOK_EVERY_S = 0.2

PATIENCE_S = 600.0
"""Seconds that the devices may take to be there: the trials have left them, but a node may have gone since."""


@contextlib.contextmanager
def on_devices(attempt: Attempt, plan: Plan) -> Iterator[Judging | None]:
    """What judges on the devices of one of a plan's processes; None for a plan without GPUs.

    A judging raises what it meets, and ProcessLostError if its process is lost or finds no place.
    """
    if not plan.gpus_per_worker:
        yield None
        return
    with contextlib.closing(_Elsewhere(attempt, plan)) as elsewhere:
        yield elsewhere.judge


class _Elsewhere:
    """One process, begun when there is something to judge, that holds the devices and ends soon after a stop."""

    def __init__(self, attempt: Attempt, plan: Plan) -> None:
        self._attempt = attempt
        self._plan = plan
        self._actor: ActorHandle | None = None

    def judge(self, trial: Trial, part: HeldOut) -> Judged:
        try:
            actor = self._actor or self._begin()
            return Judged(**self._answer(actor.judge.remote(trial.number, part)))
        except RunInterruptedError:
            self.close()
            raise

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _begin(self) -> ActorHandle:
        cpus, gpus = self._plan.cpus_per_worker, self._plan.gpus_per_worker
        made = ray.remote(_Judge).options(num_cpus=cpus, num_gpus=gpus)
        actor = self._actor = made.remote(self._attempt.storage.url, self._attempt.run, cpus)
        where = self._answer(actor.device.remote(), within_s=PATIENCE_S)
        print(f"the best models are judged on {where}", flush=True)
        return actor

    def _answer(self, asked: ObjectRef[Any], *, within_s: float = float("inf")) -> Any:
        """What the process answers; raises what it met there, and RunInterruptedError soon after a stop."""
        deadline = time.monotonic() + within_s
        try:
            while not ray.wait([asked], timeout=LOOK_EVERY_S)[0]:
                interruption.check()
                if time.monotonic() > deadline:
                    raise ProcessLostError(f"no devices were there to judge the best models on for {within_s:.0f} s")
            return ray.get(asked)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise ProcessLostError(f"the process that judged the best models was lost: {reason}") from error


class _Judge:
    """Lives on the devices; knows a run by its name, and reads from its storage what it is to judge."""

    def __init__(self, storage: str, run: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._run = Run(Storage(storage), run)
        self._device = device.find("auto")
        self._examiner: Examiner | None = None

    def device(self) -> str:
        """What it judges on. A GPU of Ray's that CUDA does not find, as in tests, is a CPU."""
        return device.label(self._device)

    def judge(self, number: int, part: HeldOut) -> dict[str, Any]:
        """What the best weights of a trial come to on all images of a part, as plain JSON."""
        view = self._run.look()
        if self._examiner is None:
            self._examiner = Examiner(data.load(view.spec().data, self._run.images))
        trial = view.trial(number)
        content = checkpoints.newest(self._run.storage, number, trial.progress)
        try:
            judged = self._examiner.judged(trial, content, part, self._device)
        except OutOfMemoryError:
            # Others may use this GPU too, and what was trained is not to be lost for it.
            where = device.label(self._device)
            print(f"{where} has too little free memory to judge trial {number}: the CPU does it", flush=True)
            judged = self._examiner.judged(trial, content, part, device.find("cpu"))
        return judged.model_dump()
