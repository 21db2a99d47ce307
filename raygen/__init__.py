"""Raygen trains and tunes generative models on Ray: autoencoders, variational autoencoders, GANs."""

from raygen.api import load, train, tune

__all__ = ["load", "train", "tune"]
