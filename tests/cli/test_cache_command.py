"""`raygen cache`: what is there, how large, when it was used, and what goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from cli.main import app
from raygen import data
from raygen.data import DataOptions, cache

DAY_S = 86_400


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "cache"))
    return CliRunner()


def age(path: Path, days: float) -> None:
    at = time.time() - days * DAY_S
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(each, (at, at))


@pytest.fixture
def filled(runner: CliRunner, tmp_path: Path) -> CliRunner:
    """A cache with images that are new, others of 40 days, a network of 50 and a data set of 60."""
    for name in ("new", "[old]"):
        np.save(tmp_path / f"{name}.npy", np.zeros((40, 8, 8), dtype=np.uint8))
        data.load(DataOptions(source=str(tmp_path / f"{name}.npy")))
    for each in cache.part("decoded").glob("*old*"):
        age(each, 40)
    network = cache.part("classifiers") / "0123.safetensors"
    network.parent.mkdir()
    network.write_bytes(b"n" * 1000)
    age(network, 50)
    downloaded = cache.part("datasets") / "FashionMNIST/raw/images.gz"
    downloaded.parent.mkdir(parents=True)
    downloaded.write_bytes(b"d" * 2000)
    age(cache.part("datasets") / "FashionMNIST", 60)
    return runner


def names(runner: CliRunner) -> list[str]:
    return [each["name"] for each in json.loads(runner.invoke(app, ["cache", "-o", "json"]).stdout)]


def test_all_that_is_cached_is_listed_the_last_used_first(filled: CliRunner, tmp_path: Path) -> None:
    listed = filled.invoke(app, ["cache"])
    assert listed.exit_code == 0, listed.output
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["images", "images", "network", "data"]
    assert rows[0][1].startswith("new-")
    assert "1.0 kB" in listed.stdout
    assert str(tmp_path / "cache") in listed.stderr
    printed = json.loads(filled.invoke(app, ["cache", "-o", "json"]).stdout)
    assert [each["part"] for each in printed] == ["decoded", "decoded", "classifiers", "datasets"]
    assert all(time.time() - each["used_at"] < 61 * DAY_S for each in printed)
    assert printed[0]["size_bytes"] > 40 * 8 * 8


def test_an_empty_cache_is_no_error(runner: CliRunner) -> None:
    listed = runner.invoke(app, ["cache"])
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert runner.invoke(app, ["cache", "prune", "--all"]).exit_code == 0


def test_what_was_not_used_for_so_long_goes(filled: CliRunner) -> None:
    pruned = filled.invoke(app, ["cache", "prune", "--older-than", "45d"])
    assert pruned.exit_code == 0, pruned.output
    assert "removed 2 of 2" in pruned.stderr
    assert len(names(filled)) == 2
    assert not (cache.part("datasets") / "FashionMNIST").exists()
    filled.invoke(app, ["cache", "prune", "--all"])
    assert names(filled) == []


def test_images_of_two_names_are_told_once_and_go_together(filled: CliRunner, tmp_path: Path) -> None:
    [images] = cache.part("decoded").glob("new-*.npy")
    link = images.with_name("other-0123456789abcdef.npy")
    link.symlink_to(images.name)
    assert len(names(filled)) == 4
    filled.invoke(app, ["cache", "prune", "--all"])
    assert not link.is_symlink()
    assert not images.exists()


def test_what_is_in_use_stays(filled: CliRunner, tmp_path: Path) -> None:
    used = data.load(DataOptions(source=str(tmp_path / "new.npy")))
    with (
        FileLock(cache.part("datasets") / ".fashion-mnist.lock"),
        FileLock(cache.part("classifiers") / "0123.safetensors.lock"),
    ):
        pruned = filled.invoke(app, ["cache", "prune", "--all"])
    assert pruned.exit_code == 0, pruned.output
    assert "removed 1 of 4" in pruned.stderr
    assert "FashionMNIST stays: it is in use" in pruned.stderr
    assert {name.partition("-")[0] for name in names(filled)} == {"new", "0123", "FashionMNIST"}
    assert len(used.train.images)


def test_a_data_set_stays_while_images_are_decoded(filled: CliRunner) -> None:
    """They may be its own, which are read from it."""
    with FileLock(cache.part("decoded") / "fashion-mnist-0123456789abcdef.npy.lock"):
        pruned = filled.invoke(app, ["cache", "prune", "--older-than", "55d"])
    assert "FashionMNIST stays: it is in use" in pruned.stderr
    assert "FashionMNIST" in names(filled)


def test_a_data_set_that_is_a_link_is_counted_and_goes_as_one(filled: CliRunner, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "large").write_bytes(bytes(1_000_000))
    (cache.part("datasets") / "linked").symlink_to(elsewhere)
    listed = json.loads(filled.invoke(app, ["cache", "-o", "json"]).stdout)
    assert next(each["size_bytes"] for each in listed if each["name"] == "linked") < 1000
    assert "removed 5 of 5" in filled.invoke(app, ["cache", "prune", "--all"]).stderr
    assert names(filled) == []
    assert (elsewhere / "large").exists()


@pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"), reason="permissions hold for root with setpriv only"
)
@pytest.mark.parametrize(
    ("closed", "mode", "left"),
    [
        ("decoded", 0, {"0123", "FashionMNIST", "more"}),
        ("decoded", 0o444, {"0123", "FashionMNIST", "more"}),
        ("classifiers", 0o444, {"new", "_old_", "FashionMNIST", "more"}),
        ("datasets", 0o444, {"new", "_old_", "0123"}),
        ("datasets/more", 0o444, {"new", "_old_", "0123", "FashionMNIST", "more"}),
        ("datasets/more", 0, {"new", "_old_", "0123", "FashionMNIST", "more"}),
    ],
)
def test_a_folder_that_is_closed_keeps_nothing_else_from_being_listed(
    filled: CliRunner, closed: str, mode: int, left: set[str]
) -> None:
    (cache.part("datasets") / "more").mkdir()
    (cache.part("datasets") / "more/images.gz").write_bytes(b"m")
    folder = cache.folder() / closed
    folder.chmod(mode)
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    listing = [*bound, sys.executable, "-c", "from cli.main import main; main()", "cache", "-o", "json"]
    try:
        listed = subprocess.run(listing, capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o755)
    assert listed.returncode == 0, listed.stderr
    assert {each["name"].partition("-")[0] for each in json.loads(listed.stdout)} == left


@pytest.mark.parametrize("arguments", ["", "--all --older-than 3d", "--older-than soon"])
def test_what_goes_is_said_by_who_asks(runner: CliRunner, arguments: str) -> None:
    refused = runner.invoke(app, ["cache", "prune", *arguments.split()])
    assert refused.exit_code == 2
    assert "30d" in refused.stderr


def test_a_use_is_written_down(filled: CliRunner) -> None:
    network = cache.part("classifiers") / "0123.safetensors"
    cache.mark_used(network)
    assert time.time() - network.stat().st_mtime < 60
    cache.mark_used(network.with_name("absent"))
