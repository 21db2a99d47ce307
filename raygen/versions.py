"""Documents of earlier versions of Raygen, read as what they mean today.

A spec's document says in `version` what its fields mean; one without it is of version 1. That had one held-out part
in the place of validation and test images (`data.held_out_fraction`), counted the seeds of `search.replicates` in all,
began no search with the defaults, and took gradient penalties of images in [0, 1]. Up to version 2 an autoencoder
had noise on its inputs in training only (`model.noise_std`), and was judged on clean ones. Up to version 3
`training.compile` was true or false, and nothing was multiplied in TensorFloat-32 on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSION = 4
"""Of the specs that are made now."""

FORMER = {
    "data.held_out_fraction": "validation and test images are set apart now: type --set data.validation_fraction=0.1, "
    "and --set data.test_fraction=0 for no test images",
    "model.noise_std": "what a model restores is of the data now: type --set data.corruption=noise "
    "--set data.corruption_std=0.3",
}
"""What to type instead of a field that is no more."""


def read_spec(document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's document with today's fields; its version stays what it was, 1 if it names none."""
    if document.get("version") == VERSION:
        return dict(document)
    document = _with_training(_with_corruption(document))
    if "version" in document:
        return document
    data, search = dict(document.get("data", {})), dict(document.get("search", {}))
    # Exactly the parts of then: all that was held out judges, nothing is left for a test.
    fraction = data.pop("held_out_fraction", 0.1)
    read = {**document, "version": 1, "data": {**data, "validation_fraction": fraction, "test_fraction": 0.0}}
    if search:
        read["search"] = {"defaults_first": False, **search, "replicates": search.get("replicates", 1) - 1}
    return read


def _with_corruption(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the noise on an autoencoder's inputs, if there is some, as corruption of the data."""
    model = dict(document.get("model", {}))
    noise_std = model.pop("noise_std", 0)
    corruption = {"corruption": "noise", "corruption_std": noise_std} if noise_std else {}
    return {**document, "model": model, "data": {**document.get("data", {}), **corruption}}


def _with_training(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with what decided how steps run on a device, if it said so, in today's words."""
    training = dict(document.get("training", {}))
    compiled = training.get("compile", False)
    if isinstance(compiled, bool):
        training["compile"] = "on" if compiled else "off"
    training.setdefault("tf32", False)
    return {**document, "training": training}
