"""A stand-in for a GPU: tensors with values on a device of their own, which nothing may mix with those of the CPU.

torch's "meta" device has a name but no values. Here its tensors have some: they lie on the CPU, inside tensors that
say that they are elsewhere. So what would fail on a GPU, as one tensor of an operation was left on the CPU, or as
numpy is given one that is not there, fails here too. How exact or how fast a GPU is, this cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

MIXED = (torch.ops.aten.copy_, torch.ops.aten._to_copy)
"""What takes tensors of two devices."""

INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten._unsafe_index)
"""What takes indices of the CPU into a tensor that is elsewhere."""


class There(Tensor):
    """A tensor that is not on the CPU, as far as anybody can see."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise AssertionError(f"{func} outside of the stand-in")


class StandInGpu(TorchDispatchMode):
    """Within it tensors can be made on DEVICE and moved to it and back, and raise RuntimeError if they are mixed."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_there = any(isinstance(tensor, There) for tensor in tensors)
        asked = kwargs.get("device")
        if is_there:
            _check(func, args, tensors)
        if asked is not None:
            is_there = torch.device(asked) == DEVICE
            kwargs["device"] = torch.device("cpu") if is_there else asked
        originals = {id(tensor.here): tensor for tensor in tensors if isinstance(tensor, There)}
        if func.overloadpacket is torch.ops.aten.copy_:
            is_there = isinstance(args[0], There)

        def unwrapped(value: Any) -> Any:
            return value.here if isinstance(value, There) else value

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return originals[id(value)] if id(value) in originals else There(value) if is_there else value

        found = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
        return tree_map(wrapped, found)


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise RuntimeError for tensors of two devices, but for numbers, which go everywhere."""
    strays = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.dim() > 0]
    if not strays or func.overloadpacket in MIXED:
        return
    if func.overloadpacket in INDEXED and isinstance(args[0], There):
        return
    raise RuntimeError(f"{func}: tensors of two devices, {[tensor.device.type for tensor in tensors]}")
