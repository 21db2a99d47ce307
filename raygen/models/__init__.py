"""The model families, found by their file names: one file here is one model, listed without importing torch."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from raygen.errors import SpecError

if TYPE_CHECKING:
    from raygen.models._base import Model


@cache
def names() -> dict[str, str]:
    """Every model's name with one line about it (the first line of its file's docstring)."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: _first_docstring_line(Path(__path__[0]) / f"{name}.py") for name in modules}


def check(name: str) -> None:
    """Raise SpecError with the nearest name where there is no model called `name`."""
    known = names()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"models: {', '.join(known)}"
        raise SpecError(f"there is no model {name!r}; {hint}")


def find(name: str) -> type[Model]:
    """The model class called `name`; raises SpecError with the nearest name where there is none."""
    from raygen.models._base import Model

    check(name)
    module = importlib.import_module(f"{__name__}.{name}")
    [model] = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Model) and member.__module__ == module.__name__
    ]
    return model


def _first_docstring_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
