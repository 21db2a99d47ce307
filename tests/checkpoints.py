"""What is written in a training's checkpoint beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from raygen.training import checkpoint


def saved_best(path: Path) -> dict[str, Any]:
    """Epoch, step and metrics of the best weights in a checkpoint, which must have some."""
    with safe_open(path, framework="pt") as file:
        best: dict[str, Any] = json.loads(file.metadata()[checkpoint.METADATA])["best"]
    return best
