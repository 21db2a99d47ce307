"""What runs on the cluster: a trial, on the device of its actor or in several Ray Train processes.

Results travel through the record alone: workers write epochs and checkpoints there, Tune is told numbers only. So a
lost process costs what was trained since the last checkpoint, and nothing has to be carried between actors.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from torch import Tensor

from raygen import data, interruption
from raygen.cluster import draining
from raygen.cluster.rendezvous import PrivateTorchConfig
from raygen.cluster.room import Room
from raygen.errors import (
    Cause,
    OutOfMemoryError,
    ProcessLostError,
    RaygenError,
    RunInterruptedError,
    StorageError,
    TrainingError,
)
from raygen.models._base import Model
from raygen.plan import Plan
from raygen.record.documents import STOPPED_EARLY, EpochRecord, TrialState
from raygen.record.scratch import Scratch
from raygen.record.trial import (
    AttemptWatch,
    TrialPlace,
    TrialWriter,
    ask_to_stop,
    claim,
    failure_of,
    newest_progress,
)
from raygen.spec import TrainSpec
from raygen.storage import Storage
from raygen.training import drawing
from raygen.training.distributed import Group
from raygen.training.health import AILMENTS
from raygen.training.loop import Epoch, fit

POLL_EVERY_S = 0.2

LOSSES_IN_A_ROW = 3
"""Times that lost processes of a training are replaced before they leave a new checkpoint; then it is lost."""

RESIZE_AFTER_S = 20.0
"""Seconds that the processes of an elastic training have before they start again for a node that has returned."""


class TrialActor(tune.Trainable):
    """One trial after another in the same process, which saves each the start of Python, torch and CUDA.

    `config` holds plain JSON: which trial of which attempt, its plan, and what it is judged by.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._place = TrialPlace(**config["place"])
        self._objective = config["objective"]
        plan = Plan(**config["plan"])
        self._training: _Alone | _Together
        if plan.workers > 1:
            self._training = _Together(self._place, plan)
        else:
            torch.set_num_threads(plan.cpus_per_worker)
            device = torch.device("cuda" if plan.gpus_per_worker else "cpu")
            self._training = _Alone(self._place, device, memory_share=min(plan.gpus_per_worker, 1.0))

    def step(self) -> dict[str, Any]:
        """Train one epoch; the last one ends the trial."""
        try:
            epoch = next(self._training.epochs, None)
            if epoch is None:
                # Whoever asked it to stop may not have been heard here yet, so what was trained tells.
                is_whole = self._training.epochs_done() == self._training.epochs_wanted
                self._training.set_state("finished" if is_whole else "interrupted")
                return {"done": True}
            # An iterator that yielded the last epoch still has its final checkpoint to write.
            done = epoch.epoch == self._training.epochs_wanted
            if done:
                next(self._training.epochs, None)
                self._training.set_state("finished")
        except RaygenError as error:
            state: TrialState = "stopped" if error.cause in AILMENTS else "failed"
            self._training.set_state(state, str(error), error.cause)
            print(f"trial {self._place.trial} {state}: {error}", flush=True)
            return {"done": True}
        return {"epoch": epoch.epoch, self._objective: epoch.metrics[self._objective], "done": done}

    def cleanup(self) -> None:
        """End the trial as it stands, with a checkpoint; Tune calls this when the scheduler stops it."""
        self._training.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial and begin another; Tune calls this to use the actor again."""
        self.cleanup()
        self.setup(new_config)
        return True


class _Alone:
    """A training in this process."""

    def __init__(self, place: TrialPlace, device: torch.device, memory_share: float) -> None:
        self._writer = TrialWriter.begin(place)
        try:
            self._writer.set_state("running")
        except StorageError:
            with contextlib.suppress(StorageError):
                self._writer.close()
            raise
        group = Group(device=device, memory_share=memory_share)
        self.epochs: Generator[Epoch | EpochRecord, None, None] = train(self._writer, group)
        self.epochs_wanted = self._writer.epochs_wanted
        self.epochs_done = self._writer.epochs_done
        self.set_state = self._writer.set_state

    def close(self) -> None:
        """End it at its next sync, with a checkpoint; what cannot be written is told, and harms no other trial."""
        try:
            with contextlib.closing(self._writer):
                try:
                    self.epochs.close()
                finally:
                    if self._writer.state == "running":
                        self._writer.record_state("stopped", STOPPED_EARLY)
        except RaygenError as error:
            print(f"trial {self._writer.number}: {error}", flush=True)


class _Together:
    """A training in several processes under Ray Train; this one waits for them, and writes only while none runs."""

    def __init__(self, place: TrialPlace, plan: Plan) -> None:
        self._place = place
        self._storage = Storage(place.storage)
        progress = newest_progress(self._storage, place)
        self.epochs_wanted = progress.epochs_wanted
        self._watch = AttemptWatch(self._storage, place)
        self._has_ended = False
        self.epochs: Generator[Epoch | EpochRecord, None, None] = self._train(plan, seen=progress.epochs_done)

    def epochs_done(self) -> int:
        """The last epoch that is finished."""
        return newest_progress(self._storage, self._place).epochs_done

    def set_state(self, state: TrialState, reason: str = "", cause: Cause = "error") -> None:
        """Write the state that the trial is in, in the place of what its processes wrote."""
        self._has_ended = state != "running"
        change = {"state": state, "reason": reason, "cause": cause}
        claim(self._storage, self._place, lambda progress: progress.model_copy(update=change))

    def close(self) -> None:
        """End the processes at their next sync, with a checkpoint; it ends too if they cannot be asked to."""
        try:
            self.epochs.close()
        finally:
            self._watch.close()
            if not self._has_ended:
                self.set_state("stopped", STOPPED_EARLY)

    def _train(self, plan: Plan, seen: int) -> Generator[EpochRecord, None, None]:
        """Train in several processes, replacing lost ones; yields epochs as the record shows them, each once.

        Closing the iterator lets the processes end at their next sync. Raises ProcessLostError if they are lost again
        and again without getting further, and what one of them wrote down that it could not go on for.
        """
        with contextlib.closing(self._keep_running(plan)) as looks:
            for _ in looks:
                for epoch in self._epochs_on_record():
                    if epoch.epoch > seen:
                        seen = epoch.epoch
                        yield epoch

    def _epochs_on_record(self) -> Sequence[EpochRecord]:
        try:
            return newest_progress(self._storage, self._place).epochs
        except StorageError:
            return ()  # the processes train on, and what they show is seen when the storage is back

    def _keep_running(self, plan: Plan) -> Generator[None, None, None]:
        """Run a training's processes, as many as there is room for, until it has ended; yields whenever to look."""
        losses = 0
        with contextlib.closing(Room(plan)) as room:
            while number := room.wait(self._watch.should_stop):
                start, taken = claim(
                    self._storage, self._place, lambda progress: progress.model_copy(update={"state": "running"})
                )
                before = taken.progress.checkpoint
                with contextlib.closing(_Processes(self._storage, self._place, start, plan, number)) as processes:
                    resizes = yield from _follow(processes, room, number, look_every_s=self._watch.every_s)
                yield
                if (failure := failure_of(self._storage, self._place, start)) is not None:
                    raise failure
                progress = newest_progress(self._storage, self._place)
                # Processes that have just ended leave room, as nodes that return do.
                is_whole = progress.epochs_done == progress.epochs_wanted
                if processes.error is None and (is_whole or not resizes):
                    return
                is_stuck = progress.checkpoint == before
                losses = losses + 1 if processes.error is not None and is_stuck else 0
                if losses > LOSSES_IN_A_ROW:
                    reason = str(processes.error).strip().rpartition("\n")[2]
                    raise ProcessLostError(
                        f"its processes were lost {losses} times without getting further: {reason}"
                    ) from processes.error


def train(writer: TrialWriter, group: Group) -> Generator[Epoch, None, None]:
    """Train the writer's trial; rank 0 writes down every epoch before it is yielded.

    It ends soon after a stop, while images are read too.
    """
    spec = writer.spec()
    writes = group.rank == 0
    dataset = _loaded(writer, spec, group)
    if dataset is None:
        return
    told = writer.fetch_checkpoint()
    if told and writes:
        print(told, flush=True)
    epochs = fit(
        spec,
        dataset,
        writer.checkpoint,
        group=group,
        warm_weights=None if spec.warm_start is None else writer.fetch_warm_start(),
        on_set_up=partial(_tell, writer) if writes else lambda words: None,
        on_pace=writer.record_pace if writes else lambda pace: None,
        on_judged=artist(writer, spec, dataset.validation.images),
        on_saved=writer.record_checkpoint,
        should_stop=writer.should_stop if writes else lambda: False,
        should_save=draining.notices(),
    )
    with contextlib.closing(epochs):
        for epoch in epochs:
            if writes:
                writer.record_epoch(epoch)
            yield epoch


def _tell(writer: TrialWriter, words: str) -> None:
    """Say something of a trial in the run's log."""
    print(f"trial {writer.number}: {words}", flush=True)


def _loaded(writer: TrialWriter, spec: TrainSpec, group: Group) -> data.Dataset | None:
    """The training's images; None, on all processes, if one of them was stopped before it had them."""
    dataset = None
    with contextlib.suppress(RunInterruptedError), interruption.heeding(writer.should_stop):
        dataset = data.load(spec.data, writer.images)
    lacking = torch.tensor([float(dataset is None)], device=group.device)
    group.sum([lacking])
    return dataset if lacking.item() == 0 else None


def artist(writer: TrialWriter, spec: TrainSpec, held_out: Tensor) -> Callable[[int, Model], None]:
    """What leaves a picture of the model after each epoch, unless the spec wants none; never why a training fails."""

    def draw(epoch: int, model: Model) -> None:
        try:
            picture = drawing.picture(model, held_out, spec)
            writer.record_picture(epoch, picture, keeps=spec.evaluation.keeps_picture)
        except (OSError, ValueError) as error:  # of Pillow
            print(f"trial {writer.number}: no picture of epoch {epoch}: {error}", flush=True)

    return draw if spec.evaluation.pictures != "none" else lambda epoch, model: None


def _follow(processes: _Processes, room: Room, number: int, *, look_every_s: float) -> Generator[None, None, bool]:
    """Wait until the processes have ended, or there is room for more of them; says whether that is so."""
    began_at = looked_at = time.monotonic()
    while processes.are_running():
        if time.monotonic() - looked_at >= look_every_s:
            yield
            looked_at = time.monotonic()
        if time.monotonic() - began_at > RESIZE_AFTER_S and room.has_grown(number):
            return True
        time.sleep(POLL_EVERY_S)
    return False


class _Processes:
    """A training's processes under Ray Train; `error` is what they were lost by."""

    def __init__(self, storage: Storage, place: TrialPlace, start: int, plan: Plan, number: int) -> None:
        self.error: Exception | None = None
        self._storage, self._place, self._start = storage, place, start
        self._scratch = Scratch()
        self._trainer = ray.train.torch.TorchTrainer(
            _train_as_one_of_several,
            train_loop_config={"place": place.as_json(), "start": start, "threads": plan.cpus_per_worker},
            torch_config=PrivateTorchConfig(backend="nccl" if plan.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=number,
                use_gpu=plan.gpus_per_worker > 0,
                resources_per_worker={"CPU": plan.cpus_per_worker, "GPU": plan.gpus_per_worker},
            ),
            run_config=RunConfig(
                # Ray Train goes on with an earlier run of the same name; the record is what we go on from.
                name=uuid.uuid4().hex,
                storage_path=str(self._scratch.folder),
                # With how many processes a training goes on, and how often, is decided here.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            ),
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 – of whatever kind: without it they would count as asked to stop
            self.error = error

    def are_running(self) -> bool:
        """Whether some still run, or wait to."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Let those that run end at their next sync, with a checkpoint."""
        try:
            if self._thread.is_alive():
                ask_to_stop(self._storage, self._place, self._start)
                self._thread.join()
        finally:
            self._scratch.close()


def _train_as_one_of_several(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    group = Group.joined(ray.train.torch.get_device())
    with contextlib.closing(TrialWriter.join(TrialPlace(**config["place"]), config["start"])) as writer:
        try:
            for _ in train(writer, group):
                pass
        except OutOfMemoryError as error:
            # Others may have memory left and wait for this rank: it has to fail for Ray Train to end them.
            writer.record_failure(error)
            raise
        except TrainingError as error:
            # Every rank gets here together, and would meet the same again.
            if group.rank == 0:
                writer.record_failure(error)
