"""What a search may vary: a TOML file of distributions, one for each varied field of the spec."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from raygen.errors import SpaceError

WIDE_RANGE = 10
"""A range of --vary whose bounds differ by this factor or more is logarithmic."""

Number = int | float
Scalar = bool | int | float | str


class _Interval(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A range whose first bound is below its second; the one field named like the form holds both."""

    @property
    def bounds(self) -> tuple[Number, Number]:
        """The lowest and the highest value."""
        low, high = next(value for value in self.__dict__.values() if isinstance(value, tuple))
        return low, high

    @property
    def is_log(self) -> bool:
        """Whether values are equally likely on a logarithmic scale."""
        return False

    @model_validator(mode="after")
    def _check_order(self) -> _Interval:
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"the first bound must be below the second, got [{low}, {high}]")
        return self

    def edges(self) -> list[Any]:
        """The values at which a range first becomes impossible."""
        return list(self.bounds)

    def values(self) -> list[Any]:
        """Every value, of a range that has a few; none of one that has too many to try them all."""
        return []


class _RealInterval(_Interval, frozen=True):
    def edges(self) -> list[Any]:
        low, high = self.bounds
        # A field of whole numbers would take the bounds, but hardly a value between them.
        return [low, low + (high - low) / math.e, high]


class Uniform(_RealInterval, frozen=True):
    """Real numbers between two bounds, all equally likely."""

    uniform: tuple[float, float]


class LogUniform(_RealInterval, frozen=True):
    """Positive real numbers between two bounds, equally likely on a logarithmic scale."""

    loguniform: tuple[Annotated[float, Field(gt=0)], float]

    @property
    def is_log(self) -> bool:
        """Always."""
        return True


class Quantised(_Interval, frozen=True):
    """Real numbers from the first bound on in steps of `step`, up to the second."""

    quantised: tuple[float, float]
    step: float = Field(gt=0)

    def edges(self) -> list[Any]:
        low, high = self.bounds
        return [low, min(low + self.step, high), high]

    def values(self) -> list[Any]:
        """Every step of the range."""
        low, high = self.bounds
        return [low + self.step * number for number in range(int((high - low) / self.step + 1e-9) + 1)]


class IntUniform(_Interval, frozen=True):
    """Whole numbers between two bounds, both included; `log` makes small ones likelier."""

    int: tuple[int, int]
    log: bool = False

    @property
    def is_log(self) -> bool:
        """Whether the space says so."""
        return self.log

    @model_validator(mode="after")
    def _check_log(self) -> IntUniform:
        if self.log and self.int[0] < 1:
            raise ValueError("a logarithmic range of whole numbers starts at 1 or more")
        return self

    def edges(self) -> list[Any]:
        low, high = self.bounds
        # A field that takes multiples of a number would take the bounds, but not the value beside one.
        return [low, min(low + 1, high), high]

    def values(self) -> list[Any]:
        """Every whole number of the range; none if it is logarithmic, which asks for some of them only."""
        low, high = self.int
        return [] if self.log else list(range(low, high + 1))


class Choice(BaseModel, frozen=True, extra="forbid"):
    """One of the values listed; a value may be a list, such as layer sizes."""

    choice: tuple[Scalar | tuple[Scalar, ...], ...] = Field(min_length=1)

    def edges(self) -> list[Any]:
        """Every value, as each may be impossible by itself."""
        return list(self.choice)

    def values(self) -> list[Any]:
        """Every value, in the order listed."""
        return [list(value) if isinstance(value, tuple) else value for value in self.choice]


FORMS = {
    "uniform": Uniform,
    "loguniform": LogUniform,
    "quantised": Quantised,
    "int": IntUniform,
    "choice": Choice,
}


def _form(value: object) -> str | None:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((form for form in FORMS if form in keys), None)


Distribution = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[Quantised, Tag("quantised")]
    | Annotated[IntUniform, Tag("int")]
    | Annotated[Choice, Tag("choice")],
    Discriminator(
        _form,
        custom_error_type="unknown_form",
        custom_error_message=f"needs one of the forms {', '.join(FORMS)}",
    ),
]


class Space(BaseModel, frozen=True, extra="forbid"):
    """A search space: the model it is for, what is optimised, and a distribution by dotted path of the spec."""

    origin: str = Field(description="the file it was read from, for messages")
    model: str
    objective: str
    direction: Literal["min", "max"]
    parameters: dict[str, Distribution] = Field(min_length=1)

    def grid_size(self) -> int:
        """The configurations there are in all; raises SpaceError naming a parameter that does not list its values."""
        for name, distribution in self.parameters.items():
            if not distribution.values():
                raise SpaceError(
                    f"{self.origin}: {name}: a grid needs the values to try, such as --vary {name}=VALUE,VALUE,VALUE"
                )
        return math.prod(len(distribution.values()) for distribution in self.parameters.values())


def names() -> dict[str, str]:
    """The spaces that come with Raygen, with the first comment line of each file."""
    folder = files("tune_spaces")
    found = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return {name: text(name).partition("\n")[0].lstrip("# ") for name in found}


def text(name_or_path: str) -> str:
    """The TOML text of a space, by its name or its file's path; raises SpaceError where there is neither."""
    bundled = files("tune_spaces").joinpath(f"{name_or_path}.toml")
    path = Path(name_or_path)
    try:
        if bundled.is_file():
            return bundled.read_text(encoding="utf-8")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = [entry.name.removesuffix(".toml") for entry in files("tune_spaces").iterdir()]
        nearest = difflib.get_close_matches(name_or_path, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "`raygen spaces` lists the named ones"
        raise SpaceError(f"there is no search space file {name_or_path!r}; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"{name_or_path}: cannot be read as a search space: {error}") from error


def of_values(model: str, objective: str, direction: Literal["min", "max"], varied: Mapping[str, str]) -> Space:
    """The space of `--vary PATH=VALUES`: `4,8,16` lists values, `1e-4..1e-2` and `8..64` are ranges.

    A range of which the second bound is ten times the first, or more, is logarithmic. Raises SpaceError.
    """
    parameters = {path: _parsed(path, text) for path, text in varied.items()}
    content = {"origin": "--vary", "model": model, "objective": objective, "direction": direction}
    return _validated({**content, "parameters": parameters})


def _parsed(path: str, text: str) -> dict[str, Any]:
    low, dots, high = text.partition("..")
    if not dots:
        values = [_value(part) for part in re.split(r",(?![^\[]*\])", text)]
        if len(values) < 2:
            raise SpaceError(f"--vary {path}={text}: list two values or more; --set {path}={text} fixes one")
        return {"choice": values}
    bounds = _value(low), _value(high)
    if not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds):
        raise SpaceError(f"--vary {path}={text}: a range is two numbers, such as {path}=1e-4..1e-2 or {path}=8..64")
    is_wide = bounds[0] > 0 and bounds[1] >= WIDE_RANGE * bounds[0]
    if all(isinstance(bound, int) for bound in bounds):
        return {"int": list(bounds), "log": is_wide}
    return {"loguniform" if is_wide else "uniform": list(bounds)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def read(name_or_path: str) -> Space:
    """The space of that name or file; raises SpaceError naming file and key where it is not one."""
    try:
        content = tomllib.loads(text(name_or_path))
    except tomllib.TOMLDecodeError as error:
        raise SpaceError(f"{name_or_path}: not valid TOML: {error}") from error
    return _validated({"origin": name_or_path, **content})


def _validated(content: Mapping[str, Any]) -> Space:
    try:
        return Space.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        # The third part of a parameter's location is the form's tag, which the person did not write.
        key = ".".join(str(part) for index, part in enumerate(first["loc"]) if index != 2)
        known = list(Space.model_fields)
        nearest = difflib.get_close_matches(key, known, n=1) if first["type"] == "extra_forbidden" else []
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise SpaceError(f"{content['origin']}: {key}: {reason}{hint}") from error
