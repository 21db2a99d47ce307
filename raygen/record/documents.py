"""What is written of a run: documents in JSON, each with the version of its format.

Every document but `Progress` and `Status` is created once and never changes. Those two have a single writer.

A storage writes them whole. If one loses its power and what it was writing, a document may be left torn: empty, zeros
or its beginning alone. Whoever reads it takes it as one that was never written, and goes on from the one before:

run.json           none: it is damaged, as nothing else says what was asked
a request          asks for nothing, but keeps its number
an attempt         has not begun, and never will
a status           is not known: the attempt's process tells whether it runs
a result           is not there; an attempt that says that it has finished is to end again
a packing          is measured again
a trial            was not made
a start's progress the start before it counts, or what the attempt found (`newest_whole`)
a checkpoint       the one before it counts, or the trial begins anew (checkpoints.py)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from raygen.data.stored import StoredData
from raygen.errors import Cause, RunError
from raygen.plan import Plan
from raygen.record.facts import BestModelJson, Count, MetricName, SpecJson, first_problem

FORMAT: Literal[1] = 1
"""The version of all documents that are made now."""

TrialState = Literal["waiting", "running", "finished", "stopped", "failed", "interrupted"]
RunState = TrialState
ENDED: tuple[TrialState, ...] = ("finished", "stopped", "failed")
STOPPED_EARLY = "by the scheduler"
"""The reason of a trial that the search's rule stopped at a rung."""

ON_REQUEST = "on request"
"""Why a run was stopped, if nobody has said more."""


class Document(BaseModel):
    """Something written down whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    format: Literal[1] = FORMAT


class RunDocument(Document):
    """What a person asked for, and when."""

    kind: Literal["train", "tune"]
    objective: MetricName
    direction: Literal["min", "max"]
    created_at: datetime
    token: str = ""
    """Tells it from others that would take the same name."""
    plan: Plan
    spec: SpecJson
    data: StoredData | None = None
    """Where the images are stored that were sent along; None if every node finds them by the spec alone."""


class RequestDocument(Document):
    """What a person asked of a run that had ended: to go on with failed trials, or by another spec."""

    reopens: bool
    spec: SpecJson | None = None


class PackingDocument(Document):
    """How many trials share a GPU, as an attempt has measured it for all that follow, and a sentence about why."""

    at_once: Annotated[Count, Field(ge=1)]
    why: str


class TrialDocument(Document):
    """A trial: the values that the search chose by dotted path, and its complete spec."""

    parameters: dict[str, Any]
    spec: SpecJson
    replicate_of: int | None = None
    """The number of the trial whose configuration this one runs on another seed."""


class EpochRecord(BaseModel):
    """A finished epoch, as raygen.training.loop.Epoch tells it."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    epoch: Count
    step: Count
    metrics: dict[str, float]
    train_s: float
    is_best: bool


class PaceRecord(BaseModel):
    """How far and how fast a training is, as raygen.training.loop.Pace tells it."""

    model_config = ConfigDict(frozen=True)

    epoch: Count
    step: Count
    steps: Annotated[Count, Field(ge=1)]
    train_s: float
    images_per_s: float


class CheckpointRecord(BaseModel):
    """A checkpoint: its key, the step after which it was written, and how many epochs were judged before it."""

    model_config = ConfigDict(frozen=True)

    key: str
    step: Count
    epochs: Count
    crc32: Count
    """Of its content: one that a loss of power has torn has another."""


class Judged(BaseModel):
    """Metrics of a trial's best weights on so many images, all of a part."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    images: Count
    metrics: dict[str, float]


class Judgement(BaseModel):
    """What a trial's best weights, of this epoch, came to; `test` is None if they were not tested."""

    model_config = ConfigDict(frozen=True)

    epoch: Count
    validation: Judged
    test: Judged | None = None


class Progress(Document):
    """How far a trial is. Each start of a writer begins the next one with all that was known before it."""

    state: TrialState = "waiting"
    reason: str = ""
    cause: Cause = "error"
    epochs_wanted: Annotated[Count, Field(ge=1)]
    extended_from: Count | None = None
    """The epochs that were wanted before the trial was extended last."""
    was_promoted: bool = False
    """Whether it went on after it was stopped early, since it was extended last."""
    epochs: tuple[EpochRecord, ...] = ()
    pace: PaceRecord | None = None
    checkpoints: tuple[CheckpointRecord, ...] = ()
    """Its newest checkpoint, and the one before it, which is kept until the next."""
    pictures: dict[int, str] = {}
    """The keys of what its model made, by epoch."""
    judgement: Judgement | None = None

    @property
    def epochs_done(self) -> int:
        """The last epoch that is finished."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def checkpoint(self) -> str | None:
        """The key of its newest checkpoint."""
        return self.checkpoints[0].key if self.checkpoints else None

    @property
    def checkpoint_step(self) -> int:
        """The step after which that was written."""
        return self.checkpoints[0].step if self.checkpoints else 0


class Taken(BaseModel):
    """A trial as an attempt found it when it began."""

    model_config = ConfigDict(frozen=True)

    document: TrialDocument
    progress: Progress


class AttemptDocument(Document):
    """An attempt that began, with all that it goes on from; or one that must not begin any more.

    What earlier attempts write after this was written is never read.
    """

    is_sealed: bool = False
    process: str = ""
    """What runs it, for people."""
    token: str = ""
    """Tells it from others that would begin the same attempt."""
    requests: Count = 0
    """How many requests it has answered."""
    trials: dict[int, Taken] = {}
    result: str | None = None
    """The key of the newest result of the attempts before it."""


class Status(Document):
    """A state and, where it needs one, its reason."""

    state: RunState
    reason: str = ""
    exit_code: int = 0
    cause: Cause = "error"


class Result(Document):
    """What an attempt left: facts about its best models, the very best first, and the keys of their files' folders."""

    best: tuple[BestModelJson, ...] = Field(min_length=1)
    folders: tuple[str, ...] = Field(min_length=1)


AnyDocument = TypeVar("AnyDocument", bound=BaseModel)


def parse(model: type[AnyDocument], key: str, content: bytes) -> AnyDocument:
    """The document in `content`; raises RunError naming its key if it is none of ours."""
    try:
        written = from_json(content, allow_inf_nan=True)
        if isinstance(written, dict) and written.get("format") != FORMAT:
            raise RunError(f"{key} was written by another version of Raygen, which alone can read it")
        return model.model_validate(written)
    except ValidationError as error:
        raise RunError(f"{key} is damaged: {first_problem(error)}") from error
    except ValueError as error:
        raise RunError(f"{key} is damaged: {error}") from error


def parse_whole(model: type[AnyDocument], key: str, content: bytes) -> AnyDocument | None:
    """The same; None if the document is torn."""
    return None if _is_torn(content) else parse(model, key, content)


def _is_torn(content: bytes) -> bool:
    """Whether this is what a loss of power leaves of a document that was being written."""
    written = content.rstrip(b"\0")
    if not written.startswith(b"{"):
        return not written
    try:
        from_json(written)
    except ValueError as error:
        return str(error).startswith("EOF while parsing")
    return False


def newest_whole(starts: Iterable[Progress | None], found: Progress, is_there: Callable[[str], bool]) -> Progress:
    """How far a trial is by what its starts wrote, the newest first, None for torn ones, and what the attempt `found`.

    If the newest is torn, an earlier one counts if the checkpoint is there that it names; if none does, the trial
    begins anew.
    """
    for place, progress in enumerate(itertools.chain(starts, [found])):
        if progress is None:
            continue
        if place == 0 or progress.checkpoint is None or is_there(progress.checkpoint):
            return progress
    return Progress(
        epochs_wanted=found.epochs_wanted, extended_from=found.extended_from, was_promoted=found.was_promoted
    )


def dump(document: BaseModel) -> bytes:
    """The document as bytes to write."""
    return document.model_dump_json().encode()
