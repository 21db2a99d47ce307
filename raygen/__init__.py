"""Raygen trains and tunes generative models on Ray: autoencoders, variational autoencoders, GANs."""

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
