"""The tools that judge what is in docker/: they come with the dev group, or are skipped with their name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def run(program: str, *arguments: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit status of a tool and what it printed; the one beside this Python goes first."""
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout + done.stderr


def planted(source: Path, right: str, wrong: str, folder: Path) -> Path:
    """A copy of a file in which a mistake was planted."""
    text = source.read_text(encoding="utf-8")
    assert right in text, f"{source.name} has no {right!r} any more"
    copy = folder / source.name
    copy.write_text(text.replace(right, wrong, 1), encoding="utf-8")
    return copy
