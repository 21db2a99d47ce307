"""Fields of a spec by their dotted paths: settings read, nested and merged, and what is wrong with one in a line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from raygen.errors import SpecError
from raygen.optimizer_options import OPTIMIZERS, OptimizerOptions, options_of
from raygen.space import Space

Settings = Mapping[str, Any]
"""Values by dotted path, such as {"optimizer.lr": 3e-4}."""


def read_file(path: Path) -> tuple[str, dict[str, Any]]:
    """The model that a TOML file names in `model.name`, and its other settings; raises SpecError naming the file."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read as a spec: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from error
    settings = dict(_flat(document))
    model = settings.pop("model.name", None)
    if not isinstance(model, str):
        raise SpecError(f'{path}: model.name: name a model, such as name = "vae" under [model]')
    return model, settings


def nested(settings: Settings) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for path, value in settings.items():
        *parents, leaf = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise SpecError(f"{path}: {parent} is set as a whole and in part")
        if isinstance(branch.get(leaf), dict):
            raise SpecError(f"{path}: it is set as a whole and in part")
        branch[leaf] = value
    return tree


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of {"a": {"b": 1}} by dotted path, ("a.b", 1)."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in the place of its own."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def merged_spec(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over`; if that names an optimizer, less what this one does not have."""
    optimizer, chosen = base.get("optimizer"), over.get("optimizer")
    if isinstance(optimizer, Mapping) and isinstance(chosen, Mapping) and "name" in chosen:
        fields = options_of(chosen).model_fields
        base = {**base, "optimizer": {name: value for name, value in optimizer.items() if name in fields}}
    return _merged(base, over)


def field_paths(spec: type[BaseModel], chosen: Mapping[Any, type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """The paths of a spec in which options of the types that `chosen` has are of the types that it says."""
    for name, field in spec.model_fields.items():
        kind = chosen.get(field.annotation, field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Space:
            yield from field_paths(kind, chosen, f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest_path(path: str, known: list[str]) -> str | None:
    """The known path most like `path`: by its last part if that names one field alone, else by its letters."""
    leaf = path.rpartition(".")[2]
    same_leaf = [candidate for candidate in known if candidate.rpartition(".")[2] == leaf]
    if len(same_leaf) == 1:
        return same_leaf[0]
    # Nobody who types another word means `optimizer.name`, though it is like `optimizer.learning_rate`.
    matches = difflib.get_close_matches(path, [path for path in known if not path.endswith(".name")], n=1)
    return matches[0] if matches else None


def other_optimizer_s(path: str, optimizer: type[OptimizerOptions]) -> str | None:
    """What to say of a field that `optimizer` does not have but another does; none if `path` is no such field."""
    part, _, field = path.partition(".")
    if part != "optimizer" or not any(field in other.model_fields for other in OPTIMIZERS.values()):
        return None
    has = ", ".join(own for own in optimizer.model_fields if own != "name")
    return f"{path}: {optimizer.model_fields['name'].default} has no {field}; it has {has}"


def explained(error: ValidationError, known: list[str], optimizer: type[OptimizerOptions]) -> str:
    """The first fault of a spec in one line: which field, what is wrong, what is valid."""
    first, *others = error.errors(include_url=False)
    path = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        if reason := other_optimizer_s(path, optimizer):
            return reason + more
        nearest = nearest_path(path, known)
        hint = f"did you mean {nearest!r}?" if nearest else "`--dry-run` prints every field"
        return f"there is no field {path!r}; {hint}{more}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{path}: {reason[0].lower()}{reason[1:]}, got {first['input']!r}{more}"


def field_of(spec: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a spec's document."""
    value: Any = spec
    for part in path.split("."):
        value = value[part]
    return value
