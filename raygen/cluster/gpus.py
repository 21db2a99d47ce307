"""What programs on this machine can use as GPUs: whole ones, and the MIG devices that others are divided into.

The driver is asked through NVML, which starts no CUDA: a process that has started it holds memory on every GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from raygen.errors import ServiceError

VARIABLE = "CUDA_VISIBLE_DEVICES"

SHARED_BY_TRAIN = "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES"
"""Whether Ray Train lets each process of a training see the GPUs of all others on its node."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What a program uses as one GPU; of a MIG device the memory is its own part, and None if the driver cannot tell.

    `former_name` is what drivers before R470 call a MIG device: MIG-GPU-…, then its instances' numbers.
    """

    uuid: str
    memory_bytes: int | None
    former_name: str = ""

    @property
    def is_mig(self) -> bool:
        """Whether it is a part of a GPU that is in MIG mode."""
        return self.uuid.startswith("MIG-")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU of the machine, and what can be used of it: itself, or in MIG mode its MIG devices alone."""

    uuid: str
    gpus: tuple[Gpu, ...]


def here() -> list[Gpu]:
    """The GPUs that this process's environment leaves to programs on this machine, in order.

    Raises ServiceError if the driver is there and cannot say.
    """
    return visible_gpus(os.environ.get(VARIABLE), cards())


def smallest_memory_bytes(found: Sequence[Gpu]) -> int | None:
    """What the one with the least memory has; None if there is none, or the driver cannot tell of each."""
    known = [gpu.memory_bytes for gpu in found if gpu.memory_bytes is not None]
    return min(known) if known and len(known) == len(found) else None


def variables_for_head(found: Sequence[Gpu]) -> dict[str, str]:
    """What a Ray head must have in its environment to hand out these GPUs, one by one.

    Without MIG devices there is nothing: Ray counts from 0, or takes the parts of the variable as they are. MIG
    devices have no numbers, and a process that is given several sees the first alone, so all are named.
    """
    if not any(gpu.is_mig for gpu in found):
        return {}
    return {VARIABLE: ",".join(gpu.uuid for gpu in found), SHARED_BY_TRAIN: "0"}


def visible_gpus(variable: str | None, found: Sequence[Card]) -> list[Gpu]:
    """Which of a machine's GPUs CUDA_VISIBLE_DEVICES leaves to programs, as CUDA and torch read it.

    It names GPUs by number, by UUID or the beginning of one, or MIG devices by MIG-…, all as the first. What names
    nothing ends the list; if one is named twice, there is none at all. A GPU in MIG mode stands for its MIG devices,
    as it does without the variable: one process sees the first of them only, but several may have one each.

    Sources: "CUDA Environment Variables" in the CUDA programming guide, "CUDA Device Enumeration" in NVIDIA's MIG user
    guide, and `_parse_visible_devices` in torch/cuda/__init__.py.
    """
    if variable is None:
        return [gpu for card in found for gpu in card.gpus]
    names = list(_names(variable))
    named = list(takewhile(bool, (_named(name, found) for name in names)))
    gpus = [gpu for each in named for gpu in each]
    return gpus if len(set(names)) == len(names) and len(set(gpus)) == len(gpus) else []


def _names(variable: str) -> Iterator[int | str]:
    """The parts of the variable up to one that has another form than the first."""
    prefix = variable[:4]
    if prefix in ("GPU-", "MIG-"):
        yield from takewhile(lambda part: part.startswith(prefix), variable.split(","))
        return
    for part in variable.split(","):
        number = re.match("[+-]?[0-9]+", part.strip())  # what follows the digits is ignored
        if number is None or int(number[0]) < 0:
            return
        yield int(number[0])


def _named(name: int | str, found: Sequence[Card]) -> tuple[Gpu, ...]:
    """What one part of the variable names; nothing if that is not there, or could be one of several."""
    if isinstance(name, int):
        return found[name].gpus if name < len(found) else ()
    if name.startswith("GPU-"):
        cards = [card for card in found if card.uuid.startswith(name)]
        return cards[0].gpus if len(cards) == 1 else ()
    parts = [gpu for card in found for gpu in card.gpus if gpu.is_mig]
    exact = [gpu for gpu in parts if name in (gpu.uuid, gpu.former_name)]
    meant = exact or [gpu for gpu in parts if gpu.uuid.startswith(name)]
    return tuple(meant) if len(meant) == 1 else ()


def cards() -> list[Card]:
    """The GPUs of this machine in the driver's order; none without a driver.

    Raises ServiceError if the driver is there and cannot say.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):  # one that was lost, which CUDA leaves out too
                found.append(_card(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except pynvml.NVMLError as error:
        raise ServiceError(f"the GPUs of this machine cannot be counted: {error} (see nvidia-smi)") from error
    finally:
        pynvml.nvmlShutdown()
    return found


def _card(handle: Any) -> Card:
    import pynvml

    uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:
        mode = pynvml.NVML_DEVICE_MIG_DISABLE  # it knows of no MIG mode, or its driver does not
    if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
        return Card(uuid=uuid, gpus=(Gpu(uuid=uuid, memory_bytes=_memory_bytes(handle)),))
    return Card(uuid=uuid, gpus=tuple(_mig_devices(handle, uuid)))


def _mig_devices(card: Any, uuid: str) -> Iterator[Gpu]:
    import pynvml

    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        with suppress(pynvml.NVMLError):  # there may be fewer than the most
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
            instances = pynvml.nvmlDeviceGetGpuInstanceId(handle), pynvml.nvmlDeviceGetComputeInstanceId(handle)
            yield Gpu(
                uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
                memory_bytes=_memory_bytes(handle),
                former_name=f"MIG-{uuid}/{instances[0]}/{instances[1]}",
            )


def _memory_bytes(handle: Any) -> int | None:
    """All memory of a device; one that shares its machine's has none of its own to tell."""
    import pynvml

    with suppress(pynvml.NVMLError):
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    return None
