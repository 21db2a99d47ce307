"""Documents of earlier versions of Raygen, read as what they mean today.

A spec's document says in `version` what its fields mean; one without it is of version 1. That had one held-out part
in the place of validation and test images (`data.held_out_fraction`), counted the seeds of `search.replicates` in all,
began no search with the defaults, and took gradient penalties of images in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSION = 2
"""Of the specs that are made now."""

FORMER = {
    "data.held_out_fraction": "validation and test images are set apart now: type --set data.validation_fraction=0.1, "
    "and --set data.test_fraction=0 for no test images"
}
"""What to type instead of a field that is no more."""


def read_spec(document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's document with today's fields; its version stays what it was, 1 if it names none."""
    if "version" in document:
        return dict(document)
    data, search = dict(document.get("data", {})), dict(document.get("search", {}))
    # Exactly the parts of then: all that was held out judges, nothing is left for a test.
    fraction = data.pop("held_out_fraction", 0.1)
    read = {**document, "version": 1, "data": {**data, "validation_fraction": fraction, "test_fraction": 0.0}}
    if search:
        read["search"] = {"defaults_first": False, **search, "replicates": search.get("replicates", 1) - 1}
    return read
