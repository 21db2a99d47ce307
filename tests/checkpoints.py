"""What is written in a training's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from raygen.training import checkpoint


def saved_best(path: Path) -> dict[str, Any]:
    """Epoch, step and metrics of the best weights in a checkpoint, which must have some."""
    with safe_open(path, framework="pt") as file:
        best: dict[str, Any] = json.loads(file.metadata()[checkpoint.METADATA])["best"]
    return best


def weights(path: Path) -> dict[str, Tensor]:
    """The weights with what else the model holds (spectral norm's vectors), and their moving average if any."""
    tensors = checkpoint.read_weights(path)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "average."))}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """The names of tensors that are not the same bit for bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def relative_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The norm of the difference, in norms of the weights, for all tensors as one vector."""
    assert first.keys() == second.keys()
    whole, other = (
        torch.cat([tensors[name].double().flatten() for name in sorted(first)]) for tensors in (first, second)
    )
    return float((whole - other).norm() / whole.norm())
