"""torch's optimizers, by a spec's options."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raygen.optimizer_options import (
    AdadeltaOptions,
    AdamOptions,
    AdamWOptions,
    OptimizerOptions,
    RMSpropOptions,
    SGDOptions,
)


def build(
    options: OptimizerOptions, params: Sequence[nn.Parameter], *, recorded: bool = False
) -> torch.optim.Optimizer:
    """The optimizer that the options say, of these parameters, at the highest learning rate.

    For steps that are recorded the learning rate is a tensor beside the parameters, which `set_learning_rate` fills.
    """
    device = params[0].device
    lr: float | Tensor = torch.full((), options.lr, device=device) if recorded else options.lr
    capturable = recorded and device.type == "cuda"
    match options:
        case AdamOptions():
            betas = options.beta1, options.beta2
            return torch.optim.Adam(params, lr=lr, betas=betas, fused=True, capturable=capturable)
        case AdamWOptions():
            betas, decay = (options.beta1, options.beta2), options.weight_decay
            return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=decay, fused=True, capturable=capturable)
        case RMSpropOptions():
            alpha, momentum = options.alpha, options.momentum
            return torch.optim.RMSprop(params, lr=lr, alpha=alpha, momentum=momentum, capturable=capturable)
        case SGDOptions():
            return torch.optim.SGD(
                params,
                lr=lr,
                momentum=options.momentum,
                nesterov=options.nesterov,
                weight_decay=options.weight_decay,
                fused=recorded,  # the only form of it that leaves the rate on the device
            )
        case AdadeltaOptions():
            return torch.optim.Adadelta(params, lr=lr, rho=options.rho, eps=options.eps, capturable=capturable)
    raise AssertionError(options.name)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Have its next steps take this rate; what is recorded reads it from where it is."""
    [group] = optimizer.param_groups
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
