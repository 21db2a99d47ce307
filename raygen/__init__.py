"""Raygen trains and tunes generative models on Ray: autoencoders, variational autoencoders, GANs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygen.api.jobs import train, tune
    from raygen.api.judging import compare, evaluate
    from raygen.api.loading import load
    from raygen.api.looking import decode, encode, interpolate, reconstruct, restore, sample, score
    from raygen.api.queue import cancel, hold, jobs, release, remove, retry
    from raygen.protocol import Protocol

__all__ = [
    "Protocol",
    "cancel",
    "compare",
    "decode",
    "encode",
    "evaluate",
    "hold",
    "interpolate",
    "jobs",
    "load",
    "reconstruct",
    "release",
    "remove",
    "restore",
    "retry",
    "sample",
    "score",
    "train",
    "tune",
]

_FILES = {
    "api.jobs": ("train", "tune"),
    "api.judging": ("compare", "evaluate"),
    "api.loading": ("load",),
    "api.looking": ("decode", "encode", "interpolate", "reconstruct", "restore", "sample", "score"),
    "api.queue": ("cancel", "hold", "jobs", "release", "remove", "retry"),
    "protocol": ("Protocol",),
}


def __getattr__(name: str) -> Any:
    """One of the above, from its file, which is imported only now: every part of Raygen imports this package first."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"raygen.{file}"), name)
    raise AttributeError(f"module 'raygen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
