"""In which way a training runs its steps: as they are, recorded, or recorded with compiled losses."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec

from raygen.spec import TrainSpec
from raygen.training.distributed import Group

RECORD_FROM_STEPS = 100
"""Planned steps that repay recording: two run as they are, and recording one takes as long as running some more."""

COMPILE_FROM_STEPS = 200_000
"""Planned steps that repay a minute of compiling, at tens of microseconds saved in each."""

COMPILERS = ("cc", "gcc", "clang")
"""What torch.compile builds its kernels' launchers with; it takes one of them."""


@dataclass(frozen=True)
class Way:
    """Whether steps are recorded once and replayed, whether losses are compiled, and in words what decided it."""

    records: bool
    compiles: bool
    words: str


AS_THEY_ARE = Way(records=False, compiles=False, words="steps run as they are")


def chosen(spec: TrainSpec, group: Group, steps: int) -> Way:
    """The way for so many planned steps in all, the same for every attempt at them.

    What is decided must not depend on how far a training has come: one that goes on has to add up as before.
    """
    is_gpu, wish = group.device.type == "cuda", spec.training.compile
    if wish == "off":
        return AS_THEY_ARE
    if not is_gpu:
        return Way(records=False, compiles=True, words="losses are compiled") if wish == "on" else AS_THEY_ARE
    compiles = wish == "on" or (steps >= COMPILE_FROM_STEPS and _can_compile(spec))
    compiled = ", with compiled losses" if compiles else ""
    if group.world_size > 1:
        return Way(
            records=False,
            compiles=compiles,
            words=f"steps run as they are{compiled}: several processes add up their gradients between them",
        )
    if wish == "auto" and steps < RECORD_FROM_STEPS:
        return Way(records=False, compiles=False, words=f"steps run as they are: {steps} do not repay recording")
    return Way(records=True, compiles=compiles, words=f"steps are recorded and replayed{compiled}")


def _can_compile(spec: TrainSpec) -> bool:
    """Whether losses can be compiled here at all; who asks for it is told why if not."""
    has_compiler = find_spec("triton") is not None and any(map(shutil.which, COMPILERS))
    return has_compiler and spec.model.differentiates_twice is None
