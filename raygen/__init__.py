"""Raygen trains and tunes generative models on Ray: autoencoders, variational autoencoders, GANs."""

from raygen.api.jobs import train, tune
from raygen.api.judging import compare, evaluate
from raygen.api.loading import load
from raygen.api.looking import decode, encode, interpolate, reconstruct, restore, sample, score
from raygen.protocol import Protocol

__all__ = [
    "Protocol",
    "compare",
    "decode",
    "encode",
    "evaluate",
    "interpolate",
    "load",
    "reconstruct",
    "restore",
    "sample",
    "score",
    "train",
    "tune",
]
