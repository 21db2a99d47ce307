"""What a job is: every choice with its one default, as frozen records that are plain JSON on the way.

`TrainSpec` says how to train one model; `TuneSpec` adds what a search varies. A field is addressed by its dotted
path, `optimizer.lr`, on the command line (`--set`), in search spaces and in Python.
"""

from raygen.spec.options import (
    Compile,
    EvaluationOptions,
    HealthOptions,
    Precision,
    Resources,
    Sampler,
    Scheduler,
    SearchOptions,
    TrainingOptions,
    WarmStart,
    resources,
)
from raygen.spec.settings import Settings, read_file
from raygen.spec.train import TrainSpec
from raygen.spec.tune import TuneSpec

__all__ = [
    "Compile",
    "EvaluationOptions",
    "HealthOptions",
    "Precision",
    "Resources",
    "Sampler",
    "Scheduler",
    "SearchOptions",
    "Settings",
    "TrainSpec",
    "TrainingOptions",
    "TuneSpec",
    "WarmStart",
    "read_file",
    "resources",
]
