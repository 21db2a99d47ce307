"""The run folder: what was asked, every trial's progress, the best checkpoints. No other code knows its file names.

RUN/
    run.json               the job: kind, spec, plan, objective, when it was made
    state.json             running, finished, failed or interrupted, and why
    attempt.json           the attempt that may run it
    driver.log             all that Ray and the trials printed, each line with its time
    driver.lock            held by the process that runs the job
    stop                   exists while somebody wants the run to stop
    summary.json           the result, written at the end
    warm_start.safetensors what its training begins with in the place of some initial weights, if its spec says so
    ray/                   what Ray Tune writes while it runs
    trials/001/
        trial.json         the trial's parameters, its complete spec, and the trial that it runs again if any
        state.json         running, finished, stopped, failed or interrupted, and why
        epochs.jsonl       a line for each epoch
        samples/           epoch-0001.png and so on: what the model made after some of them, and after the last
        judged.json        what its best weights came to on all validation images, and on all test images
        pace.json          how far and how fast, now
        failure            why its processes ended, written by one of them
        ray/               what Ray Train writes while it runs
        checkpoint.safetensors   see raygen.training.checkpoint
    best/1/ … best/k/      spec.json, model.safetensors, metrics.json, samples.png
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout
from platformdirs import user_data_path

from raygen import files, versions
from raygen.errors import CheckpointError, JobFailedError, RunError
from raygen.metrics import reported
from raygen.plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from raygen.errors import Cause, TrainingError
    from raygen.spec import TrainSpec, TuneSpec
    from raygen.training.loop import Epoch, Pace

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a run may be called: its name is a folder's, and part of a submission's on the cluster."""

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")

CHECKPOINT = "model.safetensors"
"""The file with the weights in a best/N folder."""

PICTURE = "samples.png"
"""The picture in a best/N folder."""

WARM_WEIGHTS = "warm_start.safetensors"
"""The file with the weights that a run's training begins with, beside run.json."""

State = Literal["waiting", "running", "finished", "stopped", "failed", "interrupted"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")
STOPPED_EARLY = "by the scheduler"
"""The reason of a trial that the search's rule stopped at a rung."""


@dataclass(frozen=True)
class Status:
    """A state and, where it needs one, its reason."""

    state: State
    reason: str = ""
    exit_code: int = 0
    cause: Cause = "error"


@dataclass(frozen=True)
class Judged:
    """Metrics of a trial's best weights on so many images, all of a part."""

    images: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """What a trial's best weights, of this epoch, came to; `test` is None if they were not tested."""

    epoch: int
    validation: Judged
    test: Judged | None = None


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial; `objective` is its best value so far on validation images, reached at `best_epoch`.

    It is over all of them, `validation_images`, if it was judged so at the end, as the best are; None: over those that
    epochs are judged on, as `epoch_objective` is, by which the best are found. `test` is the objective on all test
    images, if it was tested.

    A trial that runs the configuration of another on a fresh seed is its replicate. Of a configuration that has some,
    `mean` and `spread` (sample standard deviation) are over their values of `objective`, `seeds` in all.
    """

    number: int
    parameters: dict[str, Any]
    state: State
    reason: str
    epoch: int
    epochs: int
    train_s: float
    objective: float | None = None
    epoch_objective: float | None = None
    best_epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    images_per_s: float | None = None
    fraction: float = 0.0
    replicate_of: int | None = None
    validation_images: int | None = None
    test: float | None = None
    mean: float | None = None
    spread: float | None = None
    seeds: int = 0


def default_storage() -> Path:
    """Where run folders live unless told otherwise: RAYGEN_STORAGE, or the user's data directory."""
    configured = os.environ.get("RAYGEN_STORAGE")
    return Path(configured) if configured else user_data_path("raygen") / "runs"


class Trial:
    """One trial's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = int(folder.name)

    @property
    def checkpoint(self) -> Path:
        """The file of its checkpoint."""
        return self.folder / "checkpoint.safetensors"

    @property
    def warm_weights(self) -> Path:
        """The file with the weights that it begins with, if its spec says so."""
        return self.folder.parent.parent / WARM_WEIGHTS

    @property
    def parameters(self) -> dict[str, Any]:
        """The values that the search chose, by dotted path."""
        parameters: dict[str, Any] = _read_json(self.folder / "trial.json")["parameters"]
        return parameters

    @property
    def replicate_of(self) -> int | None:
        """The number of the trial whose configuration this one runs on another seed."""
        original: int | None = _read_json(self.folder / "trial.json").get("replicate_of")
        return original

    def spec(self) -> TrainSpec:
        """Its complete spec."""
        from raygen.spec import TrainSpec

        return TrainSpec.model_validate(_read_json(self.folder / "trial.json")["spec"])

    @property
    def number_of_epochs(self) -> int:
        """The epochs that its spec asks for."""
        epochs: int = _read_json(self.folder / "trial.json")["spec"]["training"]["epochs"]
        return epochs

    def extend(self, epochs: int) -> None:
        """Let a finished training go on to so many epochs."""
        document = _read_json(self.folder / "trial.json")
        document["extended_from"], document["promoted"] = document["spec"]["training"]["epochs"], False
        document["spec"]["training"]["epochs"] = epochs
        _write_json(self.folder / "trial.json", document)
        self.set_status("interrupted", "extended")

    @property
    def extended_from(self) -> int | None:
        """The epochs that it had before it was extended last; None if it never was."""
        epochs: int | None = _read_json(self.folder / "trial.json").get("extended_from")
        return epochs

    @property
    def was_stopped_early(self) -> bool:
        """Whether the search stopped it for what others showed, not for its health or on request."""
        return self.status() == Status("stopped", STOPPED_EARLY)

    def promote(self) -> None:
        """Let a training that was stopped early go on, once."""
        _write_json(self.folder / "trial.json", {**_read_json(self.folder / "trial.json"), "promoted": True})
        self.set_status("interrupted", "promoted")

    @property
    def was_promoted(self) -> bool:
        """Whether it went on after it was stopped early."""
        promoted: bool = _read_json(self.folder / "trial.json").get("promoted", False)
        return promoted

    def status(self) -> Status:
        """The state it is in, as last written."""
        return Status(**_read_json(self.folder / "state.json"))

    def set_status(self, state: State, reason: str = "", cause: Cause = "error") -> None:
        """Write the state it is in; `cause` is a failure's (raygen.errors.Cause)."""
        _write_json(self.folder / "state.json", {"state": state, "reason": reason, "cause": cause})

    def record_epoch(self, epoch: Epoch) -> None:
        """Write down a finished epoch, in the place of later ones that a resumed trial runs again."""
        path = self.folder / "epochs.jsonl"
        earlier = [line for line in self.epochs() if line["epoch"] < epoch.epoch]
        lines = [*earlier, vars(epoch)]
        _write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def record_pace(self, pace: Pace) -> None:
        """Write down how far the training is."""
        _write_json(self.folder / "pace.json", vars(pace))

    def epochs(self) -> list[dict[str, Any]]:
        """The finished epochs, as `record_epoch` was given them."""
        path = self.folder / "epochs.jsonl"
        if not path.exists():
            return []
        stat = path.stat()
        return list(_json_lines(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size)))

    def record_picture(self, epoch: int, picture: Image, *, keeps: Callable[[int], bool]) -> None:
        """Keep what its model made after an epoch, and of earlier pictures those of the epochs that `keeps` names.

        Those of later epochs go, as a resumed trial runs these again. Raises RunError if it cannot be written.
        """
        folder = self.folder / "samples"
        try:
            folder.mkdir(exist_ok=True)
            with files.whole(folder / f"epoch-{epoch:04d}.png") as partial:
                picture.save(partial, format="PNG")
            for other, path in self.pictures().items():
                if other > epoch or (other < epoch and not keeps(other)):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error.strerror}") from error

    def pictures(self) -> dict[int, Path]:
        """The pictures of what its model made, in the order of their epochs; the last may go while it trains on."""
        found = {int(path.stem.rpartition("-")[2]): path for path in self.folder.glob("samples/epoch-*.png")}
        return dict(sorted(found.items()))

    def train_s(self, epoch: int) -> float | None:
        """Seconds of training up to the end of an epoch, if it is on record."""
        return next((line["train_s"] for line in self.epochs() if line["epoch"] == epoch), None)

    def ask_to_stop(self) -> None:
        """Let the training end at its next sync."""
        (self.folder / "stop").touch()

    def clear_stop(self) -> None:
        """Forget an earlier wish that this trial stop."""
        (self.folder / "stop").unlink(missing_ok=True)

    def should_stop(self) -> bool:
        """Whether somebody wants this trial, or its whole run, to stop."""
        return (self.folder / "stop").exists() or (self.folder.parent.parent / "stop").exists()

    @property
    def ray_files(self) -> Path:
        """The folder that Ray Train may write into."""
        return self.folder / "ray"

    def record_failure(self, error: TrainingError) -> None:
        """Let the actor that waits for this trial's processes know why they ended."""
        _write_json(self.folder / "failure.json", {"reason": str(error), "cause": error.cause})

    def failure(self) -> JobFailedError | None:
        """Why its processes ended, if one of them wrote it down."""
        written = _read_json(self.folder / "failure.json", missing={})
        if not written:
            return None
        failure = JobFailedError(written["reason"])
        failure.cause = written["cause"]
        return failure

    def clear_failure(self) -> None:
        """Forget why earlier processes ended."""
        (self.folder / "failure.json").unlink(missing_ok=True)

    def record_judgement(self, judgement: Judgement) -> None:
        """Write down what its best weights came to."""
        _write_json(self.folder / "judged.json", asdict(judgement))

    def judgement(self, epoch: int) -> Judgement | None:
        """What its best weights came to, if they were of that epoch: a training that went on may have better ones."""
        written = _read_json(self.folder / "judged.json", missing={})
        if not written or written["epoch"] != epoch:
            return None
        test = written["test"]
        return Judgement(epoch, Judged(**written["validation"]), None if test is None else Judged(**test))

    def record(self, objective: str) -> TrialRecord:
        """What is known of it, judged by `objective`."""
        document, status, epochs = _read_json(self.folder / "trial.json"), self.status(), self.epochs()
        pace = _read_json(self.folder / "pace.json", missing={})
        number_of_epochs = document["spec"]["training"]["epochs"]
        best = next((line for line in reversed(epochs) if line["is_best"]), None)
        judged = self.judgement(best["epoch"]) if best else None
        values = {**(best["metrics"] if best else {}), **(judged.validation.metrics if judged else {})}
        return TrialRecord(
            number=self.number,
            parameters=document["parameters"],
            state=status.state,
            reason=status.reason,
            epoch=epochs[-1]["epoch"] if epochs else 0,
            epochs=number_of_epochs,
            train_s=max(pace.get("train_s", 0.0), epochs[-1]["train_s"] if epochs else 0.0),
            objective=values.get(objective),
            epoch_objective=best["metrics"][objective] if best else None,
            best_epoch=best["epoch"] if best else None,
            metrics=values,
            images_per_s=pace.get("images_per_s"),
            fraction=max(len(epochs) / number_of_epochs, pace["step"] / pace["steps"] if pace else 0.0),
            replicate_of=document.get("replicate_of"),
            validation_images=judged.validation.images if judged else None,
            test=judged.test.metrics[reported(objective, "test")] if judged and judged.test else None,
        )


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        document = _read_json(folder / "run.json")
        try:
            self.kind: Literal["train", "tune"] = document["kind"]
            self.objective: str = document["objective"]
            self.direction: Literal["min", "max"] = document["direction"]
            self.created_at = datetime.fromisoformat(document["created_at"])
            self.spec_json = versions.read_spec(document["spec"])
            self.plan = Plan(**document["plan"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{folder / 'run.json'} is damaged: {error!r}") from error

    @classmethod
    def create(
        cls,
        storage: Path,
        kind: str,
        spec: TrainSpec,
        plan: Plan,
        direction: str,
        *,
        name: str | None = None,
        warm_weights: bytes | None = None,
    ) -> Run:
        """A new folder in `storage`, called `name` or after model, data and time.

        `warm_weights` is the file that the spec's warm start, if it has one, is the digest of. Raises RunError where
        the folder cannot be made, or the name is no plain name.
        """
        now = datetime.now(UTC)
        source = NOT_IN_NAMES.sub("-", Path(spec.data.source).stem.lower())
        if name is not None and not NAME.fullmatch(name):
            raise RunError(f"--name {name!r}: use letters, digits, '.', '_' and '-', and begin with a letter or digit")
        if name is not None and (storage / name).exists():
            raise RunError(f"there is a run {name!r} in {storage} already; choose another --name")
        folder = _new_folder(storage, name or f"{spec.model.name}-{source}-{now.astimezone():%Y%m%d-%H%M%S}")
        if warm_weights is not None:
            _write(folder / WARM_WEIGHTS, warm_weights)
        _write_json(
            folder / "run.json",
            {
                "kind": kind,
                "objective": spec.evaluation.objective,
                "direction": direction,
                "created_at": now.isoformat(timespec="seconds"),
                "plan": plan.as_json(),
                "spec": spec.model_dump(mode="json"),
            },
        )
        run = cls(folder)
        run.set_status("waiting")
        return run

    @classmethod
    def open(cls, name_or_path: str, storage: Path) -> Run:
        """The run of that name, unambiguous beginning of a name, or path; raises RunError where there is none."""
        for folder in (Path(name_or_path), storage / name_or_path):
            if (folder / "run.json").is_file():
                return cls(folder.resolve())
        matches = sorted(storage.glob(f"{name_or_path}*/run.json")) if "/" not in name_or_path else []
        if len(matches) == 1:
            return cls(matches[0].parent.resolve())
        if matches:
            names = ", ".join(path.parent.name for path in matches)
            raise RunError(f"{name_or_path!r} begins the names of several runs: {names}")
        raise RunError(f"there is no run {name_or_path!r} in {storage}; `raygen ls` lists those there are")

    @property
    def log(self) -> Path:
        """The file with all that Ray and the trials printed."""
        return self.folder / "driver.log"

    @property
    def ray_files(self) -> Path:
        """The folder that Ray Tune may write into."""
        return self.folder / "ray"

    def spec(self) -> TrainSpec:
        """Its spec: a TuneSpec where it is a search."""
        from raygen.spec import TrainSpec, TuneSpec

        return (TuneSpec if self.kind == "tune" else TrainSpec).model_validate(self.spec_json)

    def lock(self) -> FileLock:
        """The lock that the process running this job holds; the system frees it however that process ends."""
        return FileLock(self.folder / "driver.lock")

    def is_held(self) -> bool:
        """Whether a process runs this job now."""
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True

    def status(self) -> Status:
        """The state it is in; a run whose process has gone without a word is interrupted."""
        status = Status(**_read_json(self.folder / "state.json"))
        if status.state == "running" and not self.is_held():
            return Status("interrupted", "its process ended without a word", exit_code=130)
        return status

    def set_status(self, state: State, reason: str = "", exit_code: int = 0, cause: Cause = "error") -> None:
        """Write the state it is in; `cause` is a failure's (raygen.errors.Cause)."""
        status = {"state": state, "reason": reason, "exit_code": exit_code, "cause": cause}
        _write_json(self.folder / "state.json", status)

    def begin_attempt(self, number: int) -> None:
        """Let this attempt run the job, and no earlier one; nothing that was asked of those holds any more."""
        _write_json(self.folder / "attempt.json", {"number": number})
        self.set_status("waiting")
        self.clear_stop()

    def end_attempts(self) -> None:
        """Let no attempt run the job any more, until another begins."""
        _write_json(self.folder / "attempt.json", {"number": None})

    def is_attempt(self, number: int) -> bool:
        """Whether this is the attempt that may run the job."""
        current: int | None = _read_json(self.folder / "attempt.json")["number"]
        return current == number

    def check_goes_on(self) -> None:
        """Raise RunError if its parts of the images, and so its values, were others; SpecError if its training was."""
        if self.spec_json["version"] == 1:
            raise RunError(
                f"{self.name} was made before test images were set apart, and cannot go on; type a new "
                f"`raygen {self.kind} {self.spec_json['model']['name']} --data {self.spec_json['data']['source']}`"
            )
        self.spec().check_trainable()

    def reopen(self, *, only: Cause | None = None) -> None:
        """Let trials that failed, for `only` one cause or any, go on from their checkpoints."""
        for trial in self.trials():
            status = trial.status()
            if status.state == "failed" and only in (None, status.cause):
                trial.set_status("interrupted", status.reason)

    def extend(self, spec: TuneSpec) -> None:
        """Ask for more trials or epochs; trials that finished go on from their checkpoints where epochs are more.

        Written in an order in which it can be asked for again if this process is killed half way.
        """
        for trial in self.trials():
            done = max((line["epoch"] for line in trial.epochs()), default=0)
            if trial.status().state == "finished" and done < spec.training.epochs:
                trial.extend(spec.training.epochs)
        document = {**_read_json(self.folder / "run.json"), "spec": spec.model_dump(mode="json")}
        _write_json(self.folder / "run.json", document)

    def ask_to_stop(self) -> None:
        """Let every trial end at its next sync, keeping what was trained."""
        (self.folder / "stop").touch()

    def should_stop(self) -> bool:
        """Whether somebody wants the run to stop."""
        return (self.folder / "stop").exists()

    def clear_stop(self) -> None:
        """Forget an earlier wish to stop."""
        (self.folder / "stop").unlink(missing_ok=True)

    def new_trial(
        self, number: int, parameters: Mapping[str, Any], spec: TrainSpec, *, replicate_of: int | None = None
    ) -> Trial:
        """Make the folder of a trial."""
        folder = self.folder / "trials" / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "state.json", {"state": "waiting"})
        document = {
            "parameters": dict(parameters),
            "spec": spec.model_dump(mode="json"),
            "replicate_of": replicate_of,
        }
        _write_json(folder / "trial.json", document)
        return Trial(folder)

    def trial(self, number: int) -> Trial:
        """The trial with that number."""
        return Trial(self.folder / "trials" / f"{number:03d}")

    def trials(self) -> list[Trial]:
        """Its trials, in the order in which they were made."""
        return [Trial(path.parent) for path in sorted(self.folder.glob("trials/*/trial.json"))]

    def configurations(self) -> list[Trial]:
        """Its trials without those that run another's configuration again."""
        return [trial for trial in self.trials() if trial.replicate_of is None]

    def curve(self, trial: Trial) -> list[float]:
        """What a trial showed of the objective, epoch by epoch."""
        return [line["metrics"][self.objective] for line in trial.epochs()]

    def replicates(self, original: Trial) -> list[Trial]:
        """The trials that run this trial's configuration on fresh seeds."""
        return [trial for trial in self.trials() if trial.replicate_of == original.number]

    def add_replicates(self) -> None:
        """Make the trials that a search still needs to run its best configurations on as many fresh seeds."""
        first = len(self.trials()) + 1
        for number, (original, seed) in enumerate(self._lacking_replicates(), start=first):
            spec = original.spec().with_settings({"seed": seed})
            self.new_trial(number, original.parameters, spec, replicate_of=original.number)

    def _lacking_replicates(self) -> list[tuple[Trial, int]]:
        """The best configurations' trials, each with a seed that it has not been run on."""
        search = self.spec_json.get("search", {})
        fresh = search.get("replicates", 0)
        if fresh == 0:
            return []
        # By what epochs showed, as that is known of all of them: of an extended search some were judged further.
        sign = -1 if self.direction == "max" else 1
        values = {trial: trial.record(self.objective).epoch_objective for trial in self.configurations()}
        valued = sorted((sign * value, trial.number, trial) for trial, value in values.items() if value is not None)
        return [
            (trial, trial.spec().seed + number)
            for _, _, trial in valued[: search["keep_best"]]
            for number in range(len(self.replicates(trial)) + 1, fresh + 1)
        ]

    @property
    def number_of_trials(self) -> int:
        """The trials that were asked for, those that run a configuration again among them."""
        search = self.spec_json.get("search")
        if search is None:
            return 1
        trials: int = search["trials"]
        replicates: int = search.get("replicates", 0) * min(search["keep_best"], trials)
        return trials + replicates

    def is_complete(self) -> bool:
        """Whether every trial that was asked for has ended."""
        wanted = self.spec_json["search"]["trials"] if self.kind == "tune" else 1
        ended = all(trial.status().state in ENDED for trial in self.trials())
        return len(self.configurations()) >= wanted and ended and not self._lacking_replicates()

    def records(self) -> list[TrialRecord]:
        """What is known of every trial: best/ in its order, then the best first, those without a value last."""
        judged = [_read_json(place / "metrics.json") for place in self.best_places()]
        places = {metrics.get("configuration"): place for place, metrics in enumerate(judged)}
        records = [trial.record(self.objective) for trial in self.trials()]
        records = [replace(record, **_over_fresh_seeds(record, records)) for record in records]
        return sorted(records, key=lambda record: (places.get(record.number, len(places)), self._rank(record)))

    def defaults(self) -> Trial | None:
        """A search's trial of the spec as it stands, if it began with that."""
        begins_with_them = self.spec_json.get("search", {}).get("defaults_first", False)
        return next(iter(self.configurations()), None) if begins_with_them else None

    def tested(self) -> dict[str, Any] | None:
        """What the best came to on all test images, beside a search's defaults; None if nothing was tested.

        `mean` and `spread` are over the best configuration's fresh seeds, if it was run on some.
        """
        best = self._best_facts()
        if not best.get("test"):
            return None
        name = reported(self.objective, "test")
        fresh = [trial.record(self.objective).test for trial in self.replicates(self.trial(best["configuration"]))]
        defaults = self.defaults()
        record = defaults.record(self.objective) if defaults else None
        return {
            "metric": name,
            "images": best["test"]["images"],
            "best": {
                "trial": best["trial"],
                "configuration": best["configuration"],
                "value": best["test"]["metrics"][name],
                **_spread(fresh),
            },
            "defaults": record and {"trial": record.number, "value": record.test, "epoch": record.best_epoch},
        }

    def why_untested(self) -> str:
        """Why the best has no value on test images, in a few words."""
        if self.spec_json["version"] == 1:
            return "this run was made before test images were set apart"
        if self._best_facts()["data"]["test"] == 0:
            return "there are no test images"
        return "the run was stopped before its end"

    def over_seeds(self, original: Trial) -> dict[str, dict[str, Any]]:
        """Mean, spread and number of what a configuration's fresh seeds reached, by the name of the value."""
        fresh = [trial.record(self.objective) for trial in self.replicates(original)]
        return {
            self.objective: _spread([record.objective for record in fresh]),
            reported(self.objective, "test"): _spread([record.test for record in fresh]),
        }

    def _best_facts(self) -> dict[str, Any]:
        """What is written down of the very best; nothing while there is none."""
        places = self.best_places()
        return _read_json(places[0] / "metrics.json") if places else {}

    def _rank(self, record: TrialRecord) -> tuple[bool, float]:
        """What sorts the better trials before the worse, and those without a value last."""
        sign = -1 if self.direction == "max" else 1
        return record.objective is None, sign * (record.objective or 0.0)

    def best_value(self, *, ended: bool) -> float | None:
        """The best value of the objective so far; of a run that has ended it is read from its summary."""
        summary = _read_json(self.folder / "summary.json", missing={}) if ended else {}
        if summary:
            values = [trial["objective"] for trial in summary["trials"]]
        else:
            values = [record.objective for record in sorted(self.records(), key=self._rank)]
        return values[0] if values else None

    def best(self, place: int = 1) -> Path:
        """The folder with the checkpoint in that place; raises RunError where the run has none (yet)."""
        folder = self.folder / "best" / str(place)
        if not folder.is_dir():
            raise RunError(f"{self.name} has no best checkpoint {place} (state: {self.status().state})")
        return folder

    def best_trials(self) -> list[Trial]:
        """Its trials, the one that the best model is of first, then the better before the worse."""
        ranked = [record.number for record in self.records()]
        best = self._best_facts()
        return [self.trial(number) for number in dict.fromkeys(([best["trial"]] if best else []) + ranked)]

    def best_places(self) -> list[Path]:
        """The folders of the best checkpoints, the very best first."""
        return sorted(self.folder.glob("best/*"), key=lambda path: int(path.name))

    def can_sample(self) -> bool:
        """Whether its best model has a prior to sample from."""
        return bool(self._best_facts().get("can_sample"))

    def best_picture(self) -> tuple[Path, tuple[int, int, int]]:
        """The picture of its best model, and the shape (C, H, W) of the images in it; raises RunError like `best`."""
        channels, height, width = _read_json(self.best() / "metrics.json")["image_shape"]
        return self.best() / PICTURE, (channels, height, width)

    def replace_best(self, filled: Path) -> None:
        """Put the folder `filled` in the place of the collected best checkpoints."""
        shutil.rmtree(self.folder / "best", ignore_errors=True)
        filled.rename(self.folder / "best")

    def summary(self) -> dict[str, Any]:
        """The result as plain JSON: state, trials with the best first, and where the best checkpoints are."""
        status, records = self.status(), self.records()
        return {
            "run": self.name,
            "folder": str(self.folder),
            "kind": self.kind,
            "model": self.spec_json["model"]["name"],
            "data": self.spec_json["data"]["source"],
            "created_at": self.created_at.isoformat(),
            "state": status.state,
            "reason": status.reason,
            "objective": self.objective,
            "direction": self.direction,
            "trials": [vars(record) for record in records],
            "best": [{"folder": str(place), **_read_json(place / "metrics.json")} for place in self.best_places()],
            "test": self.tested(),
        }

    def write_summary(self) -> None:
        """Write the summary beside the trials."""
        _write_json(self.folder / "summary.json", self.summary())


def field_of(spec: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a spec's document."""
    value: Any = spec
    for part in path.split("."):
        value = value[part]
    return value


def _over_fresh_seeds(record: TrialRecord, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Mean and spread of the trials that run this one's configuration again, as a TrialRecord has them."""
    return _spread([other.objective for other in records if other.replicate_of == record.number])


def _spread(found: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of the values there are, and their number."""
    values = [value for value in found if value is not None]
    return {
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }


def _new_folder(storage: Path, name: str) -> Path:
    try:
        storage.mkdir(parents=True, exist_ok=True)
        for folder in _candidates(storage.resolve(), name):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise RunError(f"cannot make a run folder in {storage}: {error.strerror}; --storage names another") from error
    raise AssertionError("the candidates never end")


def _candidates(storage: Path, name: str) -> Iterator[Path]:
    yield storage / name
    number = 2
    while True:
        yield storage / f"{name}-{number}"
        number += 1


@lru_cache(maxsize=1024)
def _json_lines(path: Path, version: tuple[int, ...]) -> tuple[dict[str, Any], ...]:
    """The file's lines, parsed once for each version of the file: a live view asks for all trials again and again."""
    try:
        return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is None:
            raise RunError(f"{path} is missing: this is not a whole run folder") from None
        return missing
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
