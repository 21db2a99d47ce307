"""torch's optimizers, by a spec's options."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from raygen.optimizer_options import (
    AdadeltaOptions,
    AdamOptions,
    AdamWOptions,
    OptimizerOptions,
    RMSpropOptions,
    SGDOptions,
)


def build(options: OptimizerOptions, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the options say, of these parameters, at the highest learning rate."""
    match options:
        case AdamOptions():
            return torch.optim.Adam(params, lr=options.lr, betas=(options.beta1, options.beta2), fused=True)
        case AdamWOptions():
            betas = options.beta1, options.beta2
            return torch.optim.AdamW(params, lr=options.lr, betas=betas, weight_decay=options.weight_decay, fused=True)
        case RMSpropOptions():
            return torch.optim.RMSprop(params, lr=options.lr, alpha=options.alpha, momentum=options.momentum)
        case SGDOptions():
            return torch.optim.SGD(
                params,
                lr=options.lr,
                momentum=options.momentum,
                nesterov=options.nesterov,
                weight_decay=options.weight_decay,
            )
        case AdadeltaOptions():
            return torch.optim.Adadelta(params, lr=options.lr, rho=options.rho, eps=options.eps)
    raise AssertionError(options.name)
