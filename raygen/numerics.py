"""What float32 means on a GPU: exact where models are judged, faster where a training may have it so.

TF32 keeps 10 of the 23 bits of a product's factors, which is enough to train with, but not to compare values with
those of a CPU. Two of torch's settings say where it is used. They are the older pair, which torch 2.9 and later still
heed: their successors, `fp32_precision`, set beside them make torch raise an error when it reads either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """A context in which float32 is float32 on a GPU too, without TF32; what was set before is set again after it."""
    import torch

    precision, convolutions = _matmul_precision(), _has_tf32_convolutions()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


def training(*, tf32: bool, cudnn_benchmark: bool) -> None:
    """How this process trains on a GPU from now on: whether with TF32, and with the fastest convolutions or the same.

    With `cudnn_benchmark` cuDNN tries its algorithms and takes the fastest, which may differ each time; without it
    only deterministic ones. Not for a training on a CPU, some of which would multiply less exactly with TF32 too.
    """
    import torch

    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cudnn.deterministic = not cudnn_benchmark


def _matmul_precision() -> str:
    """What torch.set_float32_matmul_precision takes to set again what is set."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody has set `fp32_precision`
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def _has_tf32_convolutions() -> bool:
    """What torch.backends.cudnn.allow_tf32 is set to again."""
    import torch

    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # somebody has set `fp32_precision` of some operations only; with others TF32 is the default
        return True
