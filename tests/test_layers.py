"""Imports go downward only, and what is slow to import is imported where it is needed."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygen.record.layout import RunKeys

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("raygen", "cli") for path in (ROOT / package).rglob("*.py"))

# Each line may import from the lines below it, and each name from itself.
LAYERS = [
    ["cli"],
    ["raygen"],
    ["api"],
    ["holds"],
    ["selection"],
    ["site"],
    ["history", "patience", "submission"],
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
    ["collection", "film", "report", "results", "study"],
    ["record"],
    ["training"],
    ["packing", "plan"],
    ["spec", "protocol"],
    ["evaluation_card"],
    ["metrics", "image_files", "augmentation", "corruption"],
    ["models", "data", "optimizer_options", "space", "pictures", "plotting"],
    ["machine", "processes"],
    ["storage"],
    ["files", "capacity", "versions", "mounts", "progress", "device", "numerics"],
    ["interruption"],
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
    "raygen/api/queue.py",
    "raygen/capacity.py",
    "raygen/device.py",
    "raygen/errors.py",
    "raygen/evaluation_card.py",
    "raygen/files.py",
    "raygen/film.py",
    "raygen/machine.py",
    "raygen/mounts.py",
    "raygen/numerics.py",
    "raygen/packing.py",
    "raygen/patience.py",
    "raygen/plan.py",
    "raygen/preparation.py",
    "raygen/processes.py",
    "raygen/protocol.py",
    "raygen/holds.py",
    "raygen/queue/changes.py",
    "raygen/queue/claims.py",
    "raygen/queue/database.py",
    "raygen/queue/dispatcher.py",
    "raygen/queue/holds.py",
    "raygen/queue/job.py",
    "raygen/queue/leases.py",
    "raygen/queue/lookup.py",
    "raygen/queue/placement.py",
    "raygen/queue/policy.py",
    "raygen/queue/rows.py",
    "raygen/queue/sharing.py",
    "raygen/queue/store.py",
    "raygen/queue/transitions.py",
    "raygen/submission.py",
    "raygen/cluster/head.py",
    "raygen/cluster/local.py",
    "raygen/cluster/node_check.py",
    "raygen/cluster/probe.py",
    "raygen/cluster/service.py",
    "raygen/record/attempt.py",
    "raygen/record/checkpoints.py",
    "raygen/record/courier.py",
    "raygen/record/documents.py",
    "raygen/record/layout.py",
    "raygen/record/liveness.py",
    "raygen/record/log.py",
    "raygen/record/lookout.py",
    "raygen/record/ranking.py",
    "raygen/record/reading.py",
    "raygen/record/run.py",
    "raygen/record/scratch.py",
    "raygen/record/summary.py",
    "raygen/record/trial.py",
    "raygen/record/view.py",
    "raygen/progress.py",
    "raygen/report.py",
    "raygen/search_insight.py",
    "raygen/search_plot.py",
    "raygen/selection.py",
    "raygen/site.py",
    "raygen/space.py",
    "raygen/spec/__init__.py",
    "raygen/spec/options.py",
    "raygen/spec/settings.py",
    "raygen/spec/train.py",
    "raygen/spec/tune.py",
    "raygen/storage/__init__.py",
    "raygen/storage/address.py",
    "raygen/storage/bucket.py",
    "raygen/storage/entry.py",
    "raygen/storage/folder.py",
    "raygen/storage/reason.py",
    "raygen/versions.py",
    "raygen/data/__init__.py",
    "raygen/data/catalog.py",
    "raygen/data/options.py",
    "raygen/data/stored.py",
    "raygen/metrics/__init__.py",
    "raygen/models/__init__.py",
    "raygen/models/_options.py",
]
HEAVY = {"matplotlib", "optuna", "ray", "sklearn", "torch", "torchvision"}

# What the command line, Python and whatever else is in front of the door leave to those behind it.
BEHIND_THE_DOOR = ("raygen.queue.store", "raygen.queue.database", "raygen.queue.schema", "raygen.record")

# Parts of the keys in raygen/record/layout.py, which nothing else may spell.
KEYS_OF_RUNS = re.compile(
    r"(run|trial|result|status)\.json|driver\.lock|/(attempts|trials|requests|stops)\b|\b(attempts|trials|requests)/"
)

MOST_LINES = 400

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


def named(path: Path) -> Iterator[str]:
    """The dotted names of all that a file imports, each with the name that it takes from there."""
    for node in ast.walk(ast.parse(path.read_text())):
        yield from imported(node)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def texts(path: Path) -> Iterator[str]:
    """All texts in a file's code; docstrings and comments are none of it."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


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


def test_the_documentation_shows_the_layers() -> None:
    [shown] = re.findall(r"`(cli → .*?)`", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.DOTALL)
    layers = [set(re.findall(r"\w+", layer)) for layer in shown.split("→")]
    assert layers == [set(layer) for layer in LAYERS if layer != ["raygen"]]


def test_no_two_files_import_each_other() -> None:
    """Not even for type checkers: what needs each other is one thing, or two with a third between them."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
    }
    needed = {module: {name for name in named(path) if name in modules} for module, path in modules.items()}
    # `from raygen.data import cache` names the package and the file in it: the file is meant.
    exact = {
        module: {name for name in names if not any(other.startswith(f"{name}.") for other in names)} - {module}
        for module, names in needed.items()
    }
    graphlib.TopologicalSorter(exact).prepare()


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


@pytest.mark.parametrize("path", [path for path in FILES if part(path) == "cli"], ids=lambda path: path.name)
def test_commands_reach_jobs_and_runs_through_the_door(path: Path) -> None:
    for name in named(path):
        assert not any(name == other or name.startswith(f"{other}.") for other in BEHIND_THE_DOOR), name
    attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert "store" not in attributes, "the queue's tables stay behind the door"


@every_file
def test_only_the_record_knows_how_runs_are_kept(path: Path) -> None:
    if part(path) != "record":
        assert not [text for text in texts(path) if KEYS_OF_RUNS.search(text)]


def test_keys_of_runs_are_recognised() -> None:
    keys = RunKeys("run")
    attempt = keys.attempt(3)
    trial = attempt.trial(5)
    for key in (
        *(keys.document, keys.lock, keys.request(1), keys.stops, keys.attempts),
        *(attempt.document, attempt.stop, attempt.stopping, attempt.status, attempt.result),
        *(attempt.log(1), attempt.best(1)),
        *(trial.document, trial.start(2).progress, trial.start(2).checkpoint(100)),
    ):
        assert KEYS_OF_RUNS.search(key), key


@every_file
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
