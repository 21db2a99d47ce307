"""Every error that Raygen raises on purpose, and the exit code a command ends with.

RaygenError                    1   anything below
├── InputError                 2   what the person gave cannot be used; nothing was started
│   ├── SpecError                  a field of the spec: unknown, of the wrong type, out of range
│   ├── SpaceError                 a search space file
│   ├── DataError                  a data set, folder, array or image
│   │   └── DamagedFilesError          image files that cannot be decoded
│   ├── ResourceError              more devices than the cluster will ever have
│   ├── RunError                   a run or checkpoint that is not there, or cannot do what was asked
│   └── JobError                   a job that is not in the queue, or cannot do what was asked
├── TrainingError              1   a training that cannot go on
│   ├── NonFiniteLossError         a loss became NaN or infinite
│   ├── NonFiniteObjectiveError    what decides which epoch is best did
│   ├── UnhealthyError             it learns nothing any more, though its losses are finite
│   └── OutOfMemoryError           the device or the machine has too little memory for it
├── ProcessLostError           1   processes of a training were lost, more often than they are replaced
├── RehearsalError             1   trainings that were to be measured, before a search, how many share a GPU
├── CheckpointError            1   a checkpoint, or another file of a run, that cannot be written or read
├── StorageError               1   the storage cannot be written or read
│   └── StorageSilentError         it has not answered yet, and may be there
├── MachineStorageError        1   a disk of the machine that does the work cannot be written
├── QueueError                 1   the queue's database cannot be used
│   ├── QueueUpgradedError         a newer Raygen has changed its tables while this process ran; start it again
│   └── JobChangedError            somebody else changed the job meanwhile; look again
├── ClusterUnreachableError    1   the cluster does not answer; nothing is known of its jobs
├── JobRefusedError            1   the cluster answers, but refuses what it was asked for one job
├── ServiceError               1   this machine cannot keep or start what belongs to it: state folder, head, dispatcher
├── JobFailedError             1   a job that ended without a usable result
├── WaitError                  1   a job that did not come to the state, or not in the time, that was waited for
├── PartlyDoneError            1   what was asked of several jobs, which failed for some of them
└── RunInterruptedError      130   stopped by the person; what was trained is kept
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

Ailment = Literal["mode collapse", "discriminator saturation", "posterior collapse"]
"""What a training may be stopped for although its losses are finite; see raygen.training.health."""

Cause = Literal[
    "error",
    "bad input",
    "non-finite loss",
    "non-finite objective",
    "out of memory",
    "lost",
    "mode collapse",
    "discriminator saturation",
    "posterior collapse",
]
"""Why a trial or a run failed or was stopped; only what was lost is tried again without being asked."""

RECURRING: frozenset[Cause] = frozenset({"bad input", "non-finite loss", "non-finite objective", *get_args(Ailment)})
"""Causes that a job which is tried again as it is meets again."""


MOST_NAMED = 10
"""Files that one line names."""


class RaygenError(Exception):
    """Base of all errors that Raygen raises on purpose; the message is one line for the person."""

    exit_code = 1
    cause: Cause = "error"


class InputError(RaygenError):
    """What the person gave cannot be used; nothing was started."""

    exit_code = 2
    cause = "bad input"


class SpecError(InputError):
    """A field of the spec is unknown, of the wrong type or out of range."""


class SpaceError(InputError):
    """A search space file cannot be read or does not fit the model's spec."""


class DataError(InputError):
    """A data set, folder, array or image cannot be used."""


class DamagedFilesError(DataError):
    """Image files of a folder cannot be decoded: `reasons` tells why, by their names in it."""

    def __init__(self, folder: Path, reasons: Mapping[str, str]) -> None:
        reasons = dict(sorted(reasons.items()))
        if len(reasons) == 1:
            [(name, reason)] = reasons.items()
            super().__init__(f"cannot decode the image {folder / name} ({reason}); repair it or remove it")
        else:
            super().__init__(
                f"cannot decode {len(reasons):,} images in {folder}: {named(reasons)}; repair or remove them"
            )
        self.folder, self.reasons = folder, reasons


class RaygenWarning(UserWarning):
    """Base of all warnings of Raygen's own; the message is one line for the person."""


class DamagedFilesWarning(RaygenWarning):
    """Image files that cannot be decoded are left out."""


class KeptRunWarning(RaygenWarning):
    """A run is kept, as nobody can say whether it is the best of its kind."""


def named(reasons: Mapping[str, str]) -> str:
    """The first ten files, each with its reason, and how many more there are."""
    first = [f"{name} ({reason})" for name, reason in list(reasons.items())[:MOST_NAMED]]
    more = [f"and {len(reasons) - MOST_NAMED:,} more"] if len(reasons) > MOST_NAMED else []
    return ", ".join([*first, *more])


class ResourceError(InputError):
    """The job asks for more devices than the cluster will ever have."""


class RunError(InputError):
    """A run, trial or checkpoint is not there, or cannot do what was asked of it."""


class JobError(InputError):
    """A job is not in the queue, or cannot do what was asked of it."""


class TrainingError(RaygenError):
    """A training that cannot go on, and would fail the same way if it were tried again."""


class NonFiniteLossError(TrainingError):
    """A loss became NaN or infinite."""

    cause = "non-finite loss"

    def __init__(self, *, phase: str, step: int) -> None:
        super().__init__(
            f"the {phase} loss is not finite at step {step}; lower the learning rate (--lr) "
            "or clip gradients (--set optimizer.clip_norm=1)"
        )


class NonFiniteObjectiveError(TrainingError):
    """What decides which epoch is best became NaN or infinite."""

    cause = "non-finite objective"

    def __init__(self, objective: str) -> None:
        super().__init__(f"{objective} is not finite; lower the learning rate (--lr)")


class UnhealthyError(TrainingError):
    """A training learns nothing any more, although its losses are finite; `cause` is its ailment."""

    def __init__(self, ailment: Ailment, sign: str) -> None:
        super().__init__(f"{ailment}: {sign}; --no-health trains on")
        self.ailment = ailment
        self.cause = ailment


class OutOfMemoryError(TrainingError):
    """The device or the machine has too little memory for a training."""

    cause = "out of memory"


class ProcessLostError(RaygenError):
    """Processes of a training were lost, more often than they are replaced."""

    cause = "lost"


class RehearsalError(RaygenError):
    """Short trainings, by which it was to be measured how many share a GPU, failed: the message says how."""


class CheckpointError(RaygenError):
    """A checkpoint, or another file of a run, cannot be written or read."""


class StorageError(RaygenError):
    """The storage cannot be written or read: away, full, or not open to this user."""

    cause = "lost"


class StorageSilentError(StorageError):
    """The storage has not answered yet: what it was asked may take its time, or it may be away."""


class MachineStorageError(RaygenError):
    """A disk of the machine that does the work cannot be written: full, read-only, or not open to this user."""

    cause = "lost"


class QueueError(RaygenError):
    """The queue's database cannot be used."""


class QueueUpgradedError(QueueError):
    """A newer Raygen has changed the queue's tables while this process ran, which must write to them no more."""


class JobChangedError(QueueError):
    """Somebody else changed the job meanwhile: what was about to be written no longer holds."""


class ClusterUnreachableError(RaygenError):
    """The cluster does not answer: nothing is known of its jobs, which go on or not without us."""


class JobRefusedError(RaygenError):
    """The cluster answers, but refuses what it was asked for one job; `for_good`: it would refuse the same again."""

    def __init__(self, reason: str, *, for_good: bool) -> None:
        super().__init__(reason)
        self.for_good = for_good


class ServiceError(RaygenError):
    """What belongs to this machine cannot be kept there safely, or its head or dispatcher cannot be started."""


class JobFailedError(RaygenError):
    """A job ended without a usable result."""


class PartlyDoneError(RaygenError):
    """What was asked of several jobs failed for some of them, as `failures` tell; `done` names the others."""

    def __init__(self, done: Sequence[str], failures: Sequence[RaygenError]) -> None:
        super().__init__("; ".join([*map(str, failures), f"done: {', '.join(done) or 'nothing'}"]))
        self.done, self.failures = done, failures


class WaitError(RaygenError):
    """A job did not come to the state, or not in the time, that somebody waited for."""


class RunInterruptedError(RaygenError):
    """The person stopped the run; what was trained is kept."""

    exit_code = 130
