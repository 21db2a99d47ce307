"""Under which keys a run is kept. A number that a writer creates first is its own: later numbers fence it off.

RUN/run.json                            what was asked
RUN/warm_start.safetensors              the weights that its training begins with, if its spec says so
RUN/packing.json                        how many trials share a GPU, by what was measured
RUN/requests/0001.json                  what was asked of it later
RUN/stops/0003                          attempt 3 is to stop, and why
RUN/stops/0003-005-0002                 of that attempt, the second start of trial 5 alone is
RUN/attempts/0003.json                  attempt 3 has begun, or must not any more
RUN/attempts/0003/alive                 put again and again by its process, in a bucket
RUN/attempts/0003/stopping              its process has seen that it is to stop
RUN/attempts/0003/status.json           how it stands
RUN/attempts/0003/log/000001            what it printed, in parts that grow one after the other
RUN/attempts/0003/trials/005/trial.json a trial that it has made
RUN/attempts/0003/trials/005/0002.json  how far that is since its second start in this attempt
RUN/attempts/0003/trials/005/0002-…     that start's checkpoints and pictures
RUN/attempts/0003/trials/005/0002.failure  why one of its processes ended
RUN/attempts/0003/best/1/…              the very best model: model.safetensors, spec.json, metrics.json, samples.png
RUN/attempts/0003/result.json           what its best models are
RUN/driver.lock                         in a folder: held by the process that runs the job
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RUN_DOCUMENT = "run.json"
CHECKPOINT_SUFFIX = ".safetensors"

ATTEMPT = re.compile(r"/attempts/(\d+)\.json$")
REQUEST = re.compile(r"/requests/(\d+)\.json$")
LOG_PART = re.compile(r"/attempts/(\d+)/log/(\d+)$")
TRIAL = re.compile(r"/attempts/(\d+)/trials/(\d+)/trial\.json$")
OF_TRIAL = re.compile(r"/attempts/\d+/trials/\d+/")
START = re.compile(r"/attempts/(\d+)/trials/(\d+)/(\d+)\.json$")


@dataclass(frozen=True)
class RunKeys:
    """The keys of the run of that name."""

    name: str

    @property
    def document(self) -> str:
        """What was asked."""
        return f"{self.name}/{RUN_DOCUMENT}"

    @property
    def warm_start(self) -> str:
        """The weights that its training begins with."""
        return f"{self.name}/warm_start.safetensors"

    @property
    def packing(self) -> str:
        """How many trials share a GPU."""
        return f"{self.name}/packing.json"

    @property
    def lock(self) -> str:
        """The file that its process holds locked, in a folder."""
        return f"{self.name}/driver.lock"

    @property
    def stops(self) -> str:
        """What is to stop."""
        return f"{self.name}/stops"

    @property
    def attempts(self) -> str:
        """Its attempts."""
        return f"{self.name}/attempts"

    def request(self, number: int) -> str:
        """Something that was asked of it later."""
        return f"{self.name}/requests/{number:04d}.json"

    def attempt(self, number: int) -> AttemptKeys:
        """One of its attempts."""
        return AttemptKeys(self, number)


@dataclass(frozen=True)
class AttemptKeys:
    """The keys of an attempt."""

    run: RunKeys
    number: int

    @property
    def folder(self) -> str:
        """All that it writes."""
        return f"{self.run.attempts}/{self.number:04d}"

    @property
    def document(self) -> str:
        """That it has begun."""
        return f"{self.folder}.json"

    @property
    def stop(self) -> str:
        """That it is to stop."""
        return f"{self.run.stops}/{self.number:04d}"

    @property
    def alive(self) -> str:
        """A sign of life."""
        return f"{self.folder}/alive"

    @property
    def stopping(self) -> str:
        """That its process has seen that it is to stop."""
        return f"{self.folder}/stopping"

    @property
    def status(self) -> str:
        """How it stands."""
        return f"{self.folder}/status.json"

    @property
    def result(self) -> str:
        """What its best models are."""
        return f"{self.folder}/result.json"

    def log(self, part: int) -> str:
        """A part of what it printed."""
        return f"{self.folder}/log/{part:06d}"

    def best(self, place: int) -> str:
        """The folder of one of its best models."""
        return f"{self.folder}/best/{place}"

    def trial(self, number: int) -> TrialKeys:
        """A trial of its own, or one that it goes on with."""
        return TrialKeys(self, number)


@dataclass(frozen=True)
class TrialKeys:
    """The keys of what an attempt writes of a trial."""

    attempt: AttemptKeys
    number: int

    @property
    def folder(self) -> str:
        """All of it."""
        return f"{self.attempt.folder}/trials/{self.number:03d}"

    @property
    def document(self) -> str:
        """What the trial is."""
        return f"{self.folder}/trial.json"

    def start(self, number: int) -> StartKeys:
        """A start of one that writes about it."""
        return StartKeys(self, number)


@dataclass(frozen=True)
class StartKeys:
    """The keys of what one start of a trial's writer writes."""

    trial: TrialKeys
    number: int

    @property
    def _beginning(self) -> str:
        return f"{self.trial.folder}/{self.number:04d}"

    @property
    def progress(self) -> str:
        """How far it is."""
        return f"{self._beginning}.json"

    @property
    def failure(self) -> str:
        """Why one of its processes ended."""
        return f"{self._beginning}.failure"

    @property
    def stop(self) -> str:
        """That it is to stop."""
        return f"{self.trial.attempt.stop}-{self.trial.number:03d}-{self.number:04d}"

    def checkpoint(self, step: int) -> str:
        """Its checkpoint after a step."""
        return f"{self._beginning}-{step:09d}{CHECKPOINT_SUFFIX}"

    def picture(self, epoch: int) -> str:
        """What its model made after an epoch."""
        return f"{self._beginning}-epoch-{epoch:04d}.png"
