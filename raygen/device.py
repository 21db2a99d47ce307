"""The device that trained models run on: a GPU if CUDA can use one, else the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raygen.errors import OutOfMemoryError, SpecError

if TYPE_CHECKING:
    import torch

OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")
"""What CUDA, and what cuBLAS and cuDNN say."""


def find(name: str) -> torch.device:
    """The device of that name: auto (the first GPU if CUDA can use one, else the CPU), cpu, cuda or cuda:1.

    Raises SpecError for another name, and for a GPU that is not there.
    """
    import torch

    kind, _, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isascii() and number.isdecimal()):
        raise SpecError(f"--device {name}: there is no such device; use --device auto, cpu, cuda or cuda:1")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not count:
        return torch.device("cpu")
    if int(number or 0) >= count:
        found = ", ".join(f"cuda:{place}" for place in range(count)) or "no GPU"
        raise SpecError(f"--device {name}: CUDA finds {found} on this machine; use --device auto or cpu")
    return torch.device("cuda", int(number or 0))


def label(device: torch.device) -> str:
    """What a device is called: the name of a GPU, or "CPU"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def is_full(error: RuntimeError, device: torch.device) -> bool:
    """Whether torch, or a library that it calls, found too little memory on a GPU."""
    # torch has an error of its own, but not for what libraries allocate.
    return device.type != "cpu" and any(sign in str(error) for sign in OUT_OF_MEMORY)


@contextlib.contextmanager
def explained(device: torch.device) -> Iterator[None]:
    """Raise OutOfMemoryError, which says what to type, if a GPU's memory is too little for what is done within."""
    try:
        yield
    except RuntimeError as error:
        if not is_full(error, device):
            raise
        raise OutOfMemoryError(f"the GPU {device} has too little free memory for this; use --device cpu") from error
