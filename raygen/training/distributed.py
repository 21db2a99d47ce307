"""The processes that share one training: who they are, what each one takes of a batch, how they add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """This process's place among the processes that train together; alone by default.

    Of its GPU's memory it may fill the part `memory_share`; trials of others have the rest.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    memory_share: float = 1.0

    @classmethod
    def joined(cls, device: torch.device) -> Group:
        """The place in the process group that torch.distributed has been initialised with."""
        return cls(rank=distributed.get_rank(), world_size=distributed.get_world_size(), device=device)

    def rows(self, batch_size: int, *, together: int = 1) -> slice:
        """The rows of a global batch that this process takes, in whole sets of `together` neighbouring rows.

        The parts differ by one set at most. `batch_size` must be a multiple of `together`.
        """
        sets = batch_size // together
        start, stop = (sets * place // self.world_size * together for place in (self.rank, self.rank + 1))
        return slice(start, stop)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add each tensor up over all processes, in place, in one collective operation."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(own) for part, own in zip(parts, tensors, strict=True)])


ALONE = Group()
"""One process on the CPU."""
