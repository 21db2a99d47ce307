"""Imports go downward only, and what is slow to import is imported where it is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("raygen", "cli") for path in (ROOT / package).rglob("*.py"))

# Each line may import from the lines below it, and each name from itself.
LAYERS = [
    ["cli"],
    ["raygen"],
    ["api"],
    ["site"],
    ["preparation"],
    ["cluster"],
    ["comparison"],
    ["evaluation", "queue"],
    ["spread"],
    ["anomaly", "latent_map", "latents", "prior", "restoration", "warm_start"],
    ["inspection"],
    ["search_plot", "curves_plot"],
    ["search_insight", "training_curves"],
    ["proposals", "stopping"],
    ["film", "results", "study"],
    ["runs"],
    ["training"],
    ["plan"],
    ["spec", "protocol"],
    ["evaluation_card"],
    ["metrics", "image_files", "augmentation", "corruption"],
    ["models", "data", "optimizer_options", "space", "pictures", "plotting"],
    ["files", "capacity", "versions"],
    ["errors"],
]
HEIGHTS = {name: -depth for depth, layer in enumerate(LAYERS) for name in layer}

# The command line reads these before it knows whether a model or a cluster is needed at all.
LIGHT = [
    "raygen/__init__.py",
    "raygen/api/__init__.py",
    "raygen/api/jobs.py",
    "raygen/api/judging.py",
    "raygen/api/loading.py",
    "raygen/api/looking.py",
    "raygen/capacity.py",
    "raygen/errors.py",
    "raygen/evaluation_card.py",
    "raygen/files.py",
    "raygen/film.py",
    "raygen/plan.py",
    "raygen/preparation.py",
    "raygen/protocol.py",
    "raygen/queue/dispatcher.py",
    "raygen/queue/job.py",
    "raygen/queue/placement.py",
    "raygen/queue/policy.py",
    "raygen/queue/store.py",
    "raygen/cluster/head.py",
    "raygen/cluster/local.py",
    "raygen/cluster/node_check.py",
    "raygen/cluster/probe.py",
    "raygen/cluster/service.py",
    "raygen/runs.py",
    "raygen/search_insight.py",
    "raygen/search_plot.py",
    "raygen/site.py",
    "raygen/space.py",
    "raygen/spec.py",
    "raygen/versions.py",
    "raygen/data/__init__.py",
    "raygen/data/catalog.py",
    "raygen/metrics/__init__.py",
    "raygen/models/__init__.py",
    "raygen/models/_options.py",
]
HEAVY = {"matplotlib", "optuna", "ray", "sklearn", "torch", "torchvision"}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def part(path: Path) -> str:
    """The part of the tree that a file belongs to: the first name below `raygen`, or the package itself."""
    package, *names = path.relative_to(ROOT).with_suffix("").parts
    return package if package == "cli" or names == ["__init__"] else names[0]


def imported(node: ast.AST) -> Iterator[str]:
    """The dotted names that an import statement may load, the parts of a package by their own names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        assert node.module
        if node.module == "raygen":
            yield from (f"raygen.{alias.name}" for alias in node.names)
        else:
            yield node.module


def all_imports(path: Path) -> set[str]:
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}


def imports_of_module(path: Path) -> set[str]:
    """Those that run when the module is imported: none inside a function, nor for type checkers only."""

    def visit(node: ast.AST) -> Iterator[str]:
        yield from imported(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield from visit(child)

    return set(visit(ast.parse(path.read_text())))


def test_every_part_has_its_layer() -> None:
    assert {part(path) for path in FILES} == set(HEIGHTS)


@every_file
def test_imports_go_downward(path: Path) -> None:
    own = part(path)
    for name in all_imports(path):
        package, *names = name.split(".")
        if package == "raygen":
            # `from raygen import load` names a function of the API that the package passes on.
            other = names[0] if names and names[0] in HEIGHTS else "raygen"
        elif package == "cli":
            other = "cli"
        else:
            continue
        assert other == own or HEIGHTS[other] < HEIGHTS[own], f"{own} imports {name}"


@every_file
def test_ray_is_known_to_one_folder(path: Path) -> None:
    packages = {name.partition(".")[0] for name in all_imports(path)}
    if part(path) != "cluster":
        assert "ray" not in packages
    if part(path) not in ("cluster", "proposals", "study"):
        assert "optuna" not in packages


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name: str) -> None:
    assert not {module.partition(".")[0] for module in imports_of_module(ROOT / name)} & HEAVY


def test_the_cli_leaves_torch_and_ray_alone() -> None:
    for path in (ROOT / "cli").rglob("*.py"):
        assert not {module.partition(".")[0] for module in imports_of_module(path)} & HEAVY
