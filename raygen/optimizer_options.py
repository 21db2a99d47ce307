"""The options of each optimizer: what a spec says under `optimizer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator


class OptimizerOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What every optimizer has: its name, and its learning rate over time."""

    name: Literal["adam", "adamw", "rmsprop", "sgd", "adadelta"]
    lr: float = Field(1e-3, gt=0, description="learning rate at its highest")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of a phase's gradient; none: no limit")
    schedule: Literal["constant", "cosine"] = Field("constant", description="cosine falls to 0 at the end")
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="part of all steps in which lr rises from 0")


class _WithMoments(OptimizerOptions, frozen=True, extra="forbid"):
    """What Adam and AdamW share."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean of squared gradients")


class AdamOptions(_WithMoments, frozen=True, extra="forbid"):
    """Adam (Kingma & Ba 2015)."""

    name: Literal["adam"] = "adam"


class AdamWOptions(_WithMoments, frozen=True, extra="forbid"):
    """Adam with weight decay beside the gradient, not in it (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0, description="part of each weight that a step takes off, in units of lr")


class RMSpropOptions(OptimizerOptions, frozen=True, extra="forbid"):
    """RMSprop (Hinton 2012, lecture 6e), in torch's form."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: float = Field(0.99, ge=0, lt=1, description="decay of the mean of squared gradients")
    momentum: float = Field(0.0, ge=0, lt=1, description="part of the last step that goes into the next")


class SGDOptions(OptimizerOptions, frozen=True, extra="forbid"):
    """Stochastic gradient descent, with momentum if asked for (Sutskever et al. 2013), in torch's form."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(1e-2, gt=0, description="learning rate at its highest")
    momentum: float = Field(0.0, ge=0, lt=1, description="part of the last step that goes into the next")
    nesterov: bool = Field(False, description="Nesterov's momentum: the gradient counts as if it had gone on already")
    weight_decay: float = Field(0.0, ge=0, description="weight of half the squared norm of the weights in the loss")

    @field_validator("nesterov")
    @classmethod
    def _check_nesterov(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise ValueError("there is no momentum to look ahead with; set optimizer.momentum too, such as 0.9")
        return nesterov


class AdadeltaOptions(OptimizerOptions, frozen=True, extra="forbid"):
    """Adadelta (Zeiler 2012), which finds the size of its steps by itself: a learning rate of 1 leaves it so."""

    name: Literal["adadelta"] = "adadelta"
    lr: float = Field(1.0, gt=0, description="learning rate at its highest")
    rho: float = Field(0.9, ge=0, lt=1, description="decay of the means of squared gradients and squared steps")
    eps: float = Field(1e-6, gt=0, description="added to both means; it decides the first steps")


OPTIMIZERS: Mapping[str, type[OptimizerOptions]] = {
    "adam": AdamOptions,
    "adamw": AdamWOptions,
    "rmsprop": RMSpropOptions,
    "sgd": SGDOptions,
    "adadelta": AdadeltaOptions,
}
"""The options of each optimizer, by its name."""


def options_of(values: Any) -> type[OptimizerOptions]:
    """The options of the optimizer that a document names, by default Adam; of any, if there is none so called."""
    name = values.get("name", "adam") if isinstance(values, Mapping) else "adam"
    return OPTIMIZERS.get(name, OptimizerOptions) if isinstance(name, str) else OptimizerOptions
