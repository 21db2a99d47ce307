"""Steps that are recorded once, as CUDA graphs, and replayed: the host then starts a step in a few calls.

What a step reads lies in tensors that stay in place: its images, its random numbers, the learning rates. Each phase is
a graph of its own, as not all run in every step, and so is what makes a batch of the images. A graph's results hold
until the next replay, so they are copied.

A graph is recorded once its work has run twice as it is, on the stream that it is recorded on: by then the optimizer
has its moments, libraries have chosen their algorithms, and all random numbers that it asks for are known. Nothing
differs in what is computed: a training that goes on from a checkpoint begins with steps as they are, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from raygen.models._base import Batch, Phase
from raygen.training.batches import Batches
from raygen.training.step import Step, Training

RUNS_BEFORE = 2
"""Times that work runs as it is before it is recorded."""

BATCH = "batch"
"""The part of a step that makes a batch; the others are called like their phases."""

Result = TypeVar("Result")


class PlainSteps:
    """Steps that run as they are."""

    def __init__(self, training: Training, batches: Batches) -> None:
        self._training = training
        self._batches = batches

    def run(self, pixels: Tensor, step: int) -> list[Step]:
        """Train on images uint8 [b, C, H, W]; returns what each phase came to, still on the device."""
        return self._training.step(self._batches.batch(pixels, self._batches.noise(step)), step)


class StepsInPlace:
    """The same steps over tensors that stay in place: recorded and replayed, compiled, or both."""

    def __init__(self, training: Training, batches: Batches, on_refusal: Callable[[str], None]) -> None:
        """`on_refusal` is told once if something cannot be recorded; it runs as it is then."""
        self._training = training
        self._recorder = _Recorder(training.group.device, on_refusal, records=training.way.records)
        self._pixels = batches.blank()
        self._noise = batches.held_noise()
        self._batch = _Work(lambda: batches.batch(self._pixels, self._noise.asked_by(BATCH)), self._recorder)
        self._phases = {phase.name: _RecordedPhase(training, phase, self._recorder) for phase in training.phases}
        if training.way.compiles:
            self._meet_noise()

    def run(self, pixels: Tensor, step: int) -> list[Step]:
        """Train on images uint8 [b, C, H, W]; returns what each phase came to, still on the device."""
        due = self._training.due(step)
        self._pixels.copy_(pixels)
        self._noise.begin(step, [BATCH, *(phase.name for phase in due)])
        batch = self._batch.run()
        results = []
        for phase in due:
            self._training.set_learning_rate(phase, step)
            self._noise.asked_by(phase.name)
            results.append(Step(phase.name, step, self._phases[phase.name].run(batch)))
        self._training.update_average(step)
        return results

    def _meet_noise(self) -> None:
        """Have all random numbers asked for once: what draws them cannot be compiled, what takes them can."""
        self._noise.begin(0, [])
        batch = self._batch.run()
        for phase in self._training.phases:
            self._noise.asked_by(phase.name)
            self._training.rehearse(batch, [phase])


class _RecordedPhase:
    """One phase: its loss, gradients and optimizer's step."""

    def __init__(self, training: Training, phase: Phase, recorder: _Recorder) -> None:
        self._training = training
        self._phase = phase
        self._names: tuple[str, ...] = ()
        self._seen: Batch | None = None
        self._work = _Work(self._minimise, recorder)

    def run(self, batch: Batch) -> dict[str, Tensor]:
        """Its loss and metrics on this batch, which has to be the one that it was recorded with, filled anew."""
        self._seen = batch
        values = self._work.run().clone()  # as the next replay writes over them
        return dict(zip(self._names, values.unbind(), strict=True))

    def _minimise(self) -> Tensor:
        assert self._seen is not None, "a batch comes first"
        values = self._training.minimise(self._phase, self._seen)
        self._names = tuple(values)
        return torch.stack([value.float() for value in values.values()])


class _Recorder:
    """What all graphs of one training share: a stream to record on, and a pool of memory.

    They are replayed in the order in which they were recorded, one after the other, so each may use what others only
    use while they run.
    """

    def __init__(self, device: torch.device, on_refusal: Callable[[str], None], *, records: bool) -> None:
        self.records = records
        self._device = device
        self._on_refusal = on_refusal
        if self.records:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def beside(self, work: Callable[[], Result]) -> Result:
        """Do work as it is, on the stream that it will be recorded on."""
        if not self.records:
            return work()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result] | None:
        """The graph of some work, which has not been done then, and its results; None if it cannot be recorded."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Other threads gather images meanwhile, and may.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.records = False
            torch.cuda.set_stream(current)  # which torch does only if a recording ends well
            self._on_refusal(f"steps run as they are: they cannot be recorded ({str(error).splitlines()[0]})")
            return None
        return graph, result


class _Work(Generic[Result]):
    """Work over tensors that stay in place: done as it is at first, then recorded, and replayed from then on."""

    def __init__(self, work: Callable[[], Result], recorder: _Recorder) -> None:
        self._work = work
        self._recorder = recorder
        self._runs = 0
        self._recorded: tuple[torch.cuda.CUDAGraph, Result] | None = None

    def run(self) -> Result:
        """Do it; the results hold until it is done again."""
        self._runs += 1
        if self._recorded is None and self._runs > RUNS_BEFORE and self._recorder.records:
            self._recorded = self._recorder.record(self._work)
        if self._recorded is None:
            return self._recorder.beside(self._work)
        graph, result = self._recorded
        graph.replay()
        return result
