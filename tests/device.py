"""The device that tests of models and trainings use; `python -m tests.gpu` sets it for all its processes."""

from __future__ import annotations

import os

import torch

VARIABLE = "RAYGEN_TEST_DEVICE"

DEVICE = torch.device(os.environ.get(VARIABLE, "cpu"))
"""The CPU, unless the environment names another in RAYGEN_TEST_DEVICE, such as cuda."""

ROUNDING = 1e-5 if DEVICE.type == "cpu" else 1e-4
"""Relative difference of sums that are added up in another order; a GPU has other kernels for other batch sizes."""
