"""What runs on the cluster: a trial, on the device of its actor or in several Ray Train processes.

Results travel through the run folder alone: workers write epochs and checkpoints there, Tune is told numbers only.
So a lost process costs what was trained since the last checkpoint, and nothing has to be carried between actors.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from torch import Tensor

from raygen import data
from raygen.cluster import draining
from raygen.cluster.room import Room
from raygen.errors import OutOfMemoryError, ProcessLostError, RaygenError, RunError, TrainingError
from raygen.models._base import Model
from raygen.plan import Plan
from raygen.runs import STOPPED_EARLY, Run, Trial
from raygen.spec import TrainSpec
from raygen.training import drawing
from raygen.training.distributed import Group
from raygen.training.health import AILMENTS
from raygen.training.loop import Pace, fit

PACE_EVERY_S = 0.5
POLL_EVERY_S = 0.2

LOSSES_IN_A_ROW = 3
"""Times that lost processes of a training are replaced before they leave a new checkpoint; then it is lost."""

RESIZE_AFTER_S = 20.0
"""Seconds that the processes of an elastic training have before they start again for a node that has returned."""

EpochLine = dict[str, Any]
"""An epoch as the run folder has it."""


class TrialActor(tune.Trainable):
    """One trial after another in the same process, which saves each the start of Python, torch and CUDA.

    `config` holds plain JSON: the run's folder and the trial's number.
    """

    def setup(self, config: dict[str, Any]) -> None:
        run = Run(Path(config["run"]))
        self._trial = run.trial(config["number"])
        self._objective = run.objective
        self._trial.clear_stop()
        self._trial.clear_failure()
        self._trial.set_status("running")
        if run.plan.workers > 1:
            self._epochs = train_on_workers(self._trial, run.plan)
        else:
            torch.set_num_threads(run.plan.cpus_per_worker)
            device = torch.device("cuda" if run.plan.gpus_per_worker else "cpu")
            self._epochs = train(self._trial, Group(device=device))

    def step(self) -> dict[str, Any]:
        """Train one epoch; the last one ends the trial."""
        try:
            line = next(self._epochs, None)
            if line is None:
                self._trial.set_status("interrupted" if self._trial.should_stop() else "finished")
                return {"done": True}
            # An iterator that yielded the last epoch still has its final checkpoint to write.
            done = line["epoch"] == self._trial.number_of_epochs
            if done:
                next(self._epochs, None)
                self._trial.set_status("finished")
        except RaygenError as error:
            self._trial.set_status("stopped" if error.cause in AILMENTS else "failed", str(error), error.cause)
            print(f"trial {self._trial.number} {self._trial.status().state}: {error}", flush=True)
            return {"done": True}
        return {"epoch": line["epoch"], self._objective: line["metrics"][self._objective], "done": done}

    def cleanup(self) -> None:
        """End the trial where it stands, with a checkpoint; Tune calls this when the scheduler stops it."""
        self._epochs.close()
        if self._trial.status().state == "running":
            self._trial.set_status("stopped", STOPPED_EARLY)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial and begin another; Tune calls this to use the actor again."""
        self.cleanup()
        self.setup(new_config)
        return True


def train(trial: Trial, group: Group) -> Generator[EpochLine, None, None]:
    """Train in the trial's folder; rank 0 writes down every epoch there before it is yielded."""
    spec = trial.spec()
    writes = group.rank == 0
    last_pace_at = 0.0

    def write_pace(pace: Pace) -> None:
        nonlocal last_pace_at
        if writes and time.monotonic() - last_pace_at >= PACE_EVERY_S:
            last_pace_at = time.monotonic()
            trial.record_pace(pace)

    dataset = data.load(spec.data)
    epochs = fit(
        spec,
        dataset,
        trial.checkpoint,
        group=group,
        warm_weights=trial.warm_weights,
        on_pace=write_pace,
        on_judged=artist(trial, spec, dataset.validation.images),
        should_stop=trial.should_stop if writes else lambda: False,
        should_save=draining.notices(),
    )
    try:
        with contextlib.closing(epochs):
            for epoch in epochs:
                if writes:
                    trial.record_epoch(epoch)
                yield vars(epoch)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            f"out of memory; lower the batch size ({spec.training.batch_size}) or the model's size"
        ) from error


def artist(trial: Trial, spec: TrainSpec, held_out: Tensor) -> Callable[[int, Model], None]:
    """What leaves a picture of the model after each epoch, unless the spec wants none; never why a training fails."""

    def draw(epoch: int, model: Model) -> None:
        # Eagerly: the networks would be compiled once more for the few images of a picture.
        stance = torch.compiler.set_stance("force_eager") if spec.training.compile else contextlib.nullcontext()
        try:
            with stance:
                picture = drawing.picture(model, held_out, spec)
            trial.record_picture(epoch, picture, keeps=spec.evaluation.keeps_picture)
        except RunError as error:
            print(f"trial {trial.number}: no picture of epoch {epoch}: {error}", flush=True)

    return draw if spec.evaluation.pictures != "none" else lambda epoch, model: None


def train_on_workers(trial: Trial, plan: Plan) -> Generator[EpochLine, None, None]:
    """Train in several processes, replacing lost ones; yields epochs as the folder shows them, each once.

    Closing the iterator lets the processes end at their next sync. Raises ProcessLostError where they are lost again
    and again without getting further, and what one of them wrote down that it could not go on for.
    """
    seen = max((line["epoch"] for line in trial.epochs()), default=0)
    with contextlib.closing(_keep_running(trial, plan)) as looks:
        for _ in looks:
            for line in trial.epochs():
                if line["epoch"] > seen:
                    seen = line["epoch"]
                    yield line


def _keep_running(trial: Trial, plan: Plan) -> Generator[None, None, None]:
    """Run a training's processes, as many as there is room for, until it has ended; yields whenever to look at it."""
    losses = 0
    with contextlib.closing(Room(plan)) as room:
        while number := room.wait(trial.should_stop):
            before = _written_at(trial.checkpoint)
            with contextlib.closing(_Processes(trial, plan, number)) as processes:
                resizes = yield from _follow(processes, room, number)
            yield
            if (failure := trial.failure()) is not None:
                raise failure
            if processes.error is None and not resizes:
                return
            losses = losses + 1 if processes.error is not None and _written_at(trial.checkpoint) == before else 0
            if losses > LOSSES_IN_A_ROW:
                reason = str(processes.error).strip().rpartition("\n")[2]
                raise ProcessLostError(
                    f"its processes were lost {losses} times without getting further: {reason}"
                ) from processes.error


def _follow(processes: _Processes, room: Room, number: int) -> Generator[None, None, bool]:
    """Wait until the processes have ended, or there is room for more of them; says whether that is so."""
    began_at = time.monotonic()
    while processes.are_running():
        yield
        if time.monotonic() - began_at > RESIZE_AFTER_S and room.has_grown(number):
            return True
        time.sleep(POLL_EVERY_S)
    return False


def _written_at(checkpoint: Path) -> int | None:
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else None


class _Processes:
    """A training's processes under Ray Train; `error` is what they were lost by."""

    def __init__(self, trial: Trial, plan: Plan, number: int) -> None:
        self.error: Exception | None = None
        self._trial = trial
        self._trainer = ray.train.torch.TorchTrainer(
            _train_as_one_of_several,
            train_loop_config={"trial": str(trial.folder), "threads": plan.cpus_per_worker},
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if plan.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=number,
                use_gpu=plan.gpus_per_worker > 0,
                resources_per_worker={"CPU": plan.cpus_per_worker, "GPU": plan.gpus_per_worker},
            ),
            run_config=RunConfig(
                # Ray Train goes on with an earlier run of the same name; the run folder is what we go on from.
                name=uuid.uuid4().hex,
                storage_path=str(trial.ray_files),
                # With how many processes a training goes on, and how often, is decided here.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            ),
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except (ray.train.TrainingFailedError, RayError) as error:
            self.error = error

    def are_running(self) -> bool:
        """Whether some still run, or wait to."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Let those that run end at their next sync, with a checkpoint."""
        if self._thread.is_alive():
            self._trial.ask_to_stop()
            self._thread.join()
            self._trial.clear_stop()
        shutil.rmtree(self._trial.ray_files, ignore_errors=True)


def _train_as_one_of_several(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    trial = Trial(Path(config["trial"]))
    group = Group.joined(ray.train.torch.get_device())
    try:
        for _ in train(trial, group):
            pass
    except OutOfMemoryError as error:
        # Others may have memory left and wait for this rank: it has to fail for Ray Train to end them.
        trial.record_failure(error)
        raise
    except TrainingError as error:
        # Every rank gets here together, and would meet the same again.
        if group.rank == 0:
            trial.record_failure(error)
