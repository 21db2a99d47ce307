"""What a run came to, in plain JSON: pure functions over what is known of it."""

from __future__ import annotations

from typing import Any

from raygen.metrics import reported
from raygen.record import ranking
from raygen.record.view import View, spread


def summary(view: View) -> dict[str, Any]:
    """The result: state, trials with the best first, and what is known of the best models."""
    return {
        "run": view.name,
        "kind": view.kind,
        "model": view.spec_json["model"]["name"],
        "data": view.spec_json["data"]["source"],
        "created_at": view.created_at.isoformat(),
        "state": view.status.state,
        "reason": view.status.reason,
        "objective": view.objective,
        "direction": view.direction,
        "trials": [vars(record) for record in ranking.records(view)],
        "best": list(view.best),
        "test": tested(view),
        "packing": view.packing and {"at_once": view.packing.at_once, "why": view.packing.why},
    }


def tested(view: View) -> dict[str, Any] | None:
    """What the best came to on all test images, beside a search's defaults; None if nothing was tested.

    `mean` and `spread` are over the best configuration's fresh seeds, if it was run on some.
    """
    best = view.best[0] if view.best else {}
    if not best.get("test"):
        return None
    name = reported(view.objective, "test")
    fresh = [trial.record(view.objective).test for trial in view.replicates(view.trial(best["configuration"]))]
    record = view.defaults.record(view.objective) if view.defaults else None
    return {
        "metric": name,
        "images": best["test"]["images"],
        "best": {
            "trial": best["trial"],
            "configuration": best["configuration"],
            "value": best["test"]["metrics"][name],
            **spread(fresh),
        },
        "defaults": record and {"trial": record.number, "value": record.test, "epoch": record.best_epoch},
    }


def why_untested(view: View) -> str:
    """Why the best has no value on test images, in a few words."""
    if view.best and view.best[0]["data"]["test"] == 0:
        return "there are no test images"
    return "the run was stopped before its end"
