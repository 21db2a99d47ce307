"""Every error that Raygen raises on purpose, and the exit code a command ends with.

RaygenError                    1   anything below
├── InputError                 2   what the person gave cannot be used; nothing was started
│   ├── SpecError                  a field of the spec: unknown, of the wrong type, out of range
│   ├── SpaceError                 a search space file
│   ├── DataError                  a data set, folder, array or image
│   ├── ResourceError              more devices than the cluster will ever have
│   └── RunError                   a run or checkpoint that is not there, or cannot do what was asked
├── TrainingError              1   a training that cannot go on
│   └── NonFiniteLossError         a loss became NaN or infinite
├── CheckpointError            1   a checkpoint, or another file of a run, that cannot be written or read
├── JobFailedError             1   a job that ended without a usable result
└── RunInterruptedError      130   stopped by the person; what was trained is kept
"""


class RaygenError(Exception):
    """Base of all errors that Raygen raises on purpose; the message is one line for the person."""

    exit_code = 1


class InputError(RaygenError):
    """What the person gave cannot be used; nothing was started."""

    exit_code = 2


class SpecError(InputError):
    """A field of the spec is unknown, of the wrong type or out of range."""


class SpaceError(InputError):
    """A search space file cannot be read or does not fit the model's spec."""


class DataError(InputError):
    """A data set, folder, array or image cannot be used."""


class ResourceError(InputError):
    """The job asks for more devices than the cluster will ever have."""


class RunError(InputError):
    """A run, trial or checkpoint is not there, or cannot do what was asked of it."""


class TrainingError(RaygenError):
    """A training that cannot go on, and would fail the same way if it were tried again."""


class NonFiniteLossError(TrainingError):
    """A loss became NaN or infinite."""

    def __init__(self, *, phase: str, step: int) -> None:
        super().__init__(
            f"the {phase} loss is not finite at step {step}; lower the learning rate (--lr) "
            "or clip gradients (--set optimizer.clip_norm=1)"
        )


class CheckpointError(RaygenError):
    """A checkpoint, or another file of a run, cannot be written or read."""


class JobFailedError(RaygenError):
    """A job ended without a usable result."""


class RunInterruptedError(RaygenError):
    """The person stopped the run; what was trained is kept."""

    exit_code = 130
