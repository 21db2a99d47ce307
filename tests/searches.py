"""Run folders of searches that never ran, as their trials would have left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raygen.plan import Plan
from raygen.runs import Run, State, Trial
from raygen.spec import TuneSpec
from raygen.training.loop import Epoch

PLAN = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
HEAD = 'model = "vae"\nobjective = "val_elbo"\ndirection = "max"\n\n[parameters]\n'


def search(storage: Path, parameters: str, *, epochs: int = 9, **settings: Any) -> Run:
    """A search over these lines of a space, without trials yet; its objective is the higher, the better."""
    storage.mkdir(exist_ok=True)
    space = storage / "space.toml"
    space.write_text(HEAD + parameters)
    search_settings = {f"search.{name}": value for name, value in settings.items()}
    spec = TuneSpec.search_over(str(space), "vae", {"training.epochs": epochs, **search_settings})
    return Run.create(storage, "tune", spec, PLAN, "max", name="search")


def add_trial(
    run: Run,
    parameters: Mapping[str, Any],
    values: Sequence[float],
    *,
    state: State = "finished",
    cause: Any = "error",
) -> Trial:
    """A trial with these values of the objective, one for each epoch."""
    spec = run.spec()
    assert isinstance(spec, TuneSpec)
    trial = run.new_trial(len(run.trials()) + 1, parameters, spec.trial_spec(parameters))
    best = None
    for number, value in enumerate(values, start=1):
        is_best = best is None or value > best
        best = value if is_best else best
        trial.record_epoch(
            Epoch(epoch=number, step=number, metrics={run.objective: value}, train_s=number, is_best=is_best)
        )
    trial.set_status(state, cause=cause)
    return trial
