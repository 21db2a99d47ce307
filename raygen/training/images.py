"""Where training images stay while a training runs: on its device, or on the host, which sends batches ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

AHEAD = 2
"""Batches that are gathered on the host while the device works on those before."""


class Images(Protocol):
    """Training images uint8 [N, C, H, W], wherever they are."""

    def batches(self, positions: Tensor) -> Iterator[Tensor]:
        """Images [b, C, H, W] on the device at each row of positions, int64 [steps, b] on the host.

        What is yielded holds until the next is asked for.
        """


class OnDevice:
    """Images that lie on the device; on a CPU these are the ones that were read."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self._images = images.to(device)

    def batches(self, positions: Tensor) -> Iterator[Tensor]:
        for rows in positions.to(self._images.device):
            yield self._images.index_select(0, rows)


class OnHost:
    """Images that stay on the host: a thread gathers batches in pinned memory, and a stream of its own copies them."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self._images = images
        self._device = device

    def batches(self, positions: Tensor) -> Iterator[Tensor]:
        slots = [_Slot(self._images, positions.shape[1], self._device) for _ in range(AHEAD)]
        waiting: deque[tuple[_Slot, Future[None]]] = deque()
        rows = iter(positions)
        # Whoever closes this early waits for the one or two that are being gathered.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="gather") as gatherer:
            for slot, chosen in zip(slots, rows, strict=False):
                waiting.append((slot, gatherer.submit(slot.gather, chosen)))
            while waiting:
                slot, gathered = waiting.popleft()
                gathered.result()
                yield slot.sent()
                slot.leave()
                if (chosen := next(rows, None)) is not None:
                    waiting.append((slot, gatherer.submit(slot.gather, chosen)))


class _Slot:
    """Room for one batch, pinned on the host and on the device, used again and again.

    The host's part may be written again once it was copied, the device's once what reads it was left. On a CPU both
    are one.
    """

    def __init__(self, images: Tensor, rows: int, device: torch.device) -> None:
        self._images = images
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        shape = (rows, *images.shape[1:])
        self._host = torch.empty(shape, dtype=images.dtype, pin_memory=self._stream is not None)
        self._batch = self._host if self._stream is None else torch.empty(shape, dtype=images.dtype, device=device)
        if self._stream is not None:
            self._copied, self._left = torch.cuda.Event(), torch.cuda.Event()

    def gather(self, rows: Tensor) -> None:
        """Put the images of these rows [b] into the host's part; in another thread than all else."""
        if self._stream is not None:
            self._copied.synchronize()
        torch.index_select(self._images, 0, rows, out=self._host)

    def sent(self) -> Tensor:
        """The batch on the device, as soon as the work that follows on the current stream needs it."""
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._left)
                self._batch.copy_(self._host, non_blocking=True)
                self._copied.record(self._stream)
            torch.cuda.current_stream(self._batch.device).wait_event(self._copied)
        return self._batch

    def leave(self) -> None:
        """Say that all work that reads the batch is on its way."""
        if self._stream is not None:
            self._left.record(torch.cuda.current_stream(self._batch.device))
