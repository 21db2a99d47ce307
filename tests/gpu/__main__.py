"""What a GPU must show: tests on it, then measurements; on a CPU the same, small.

    python -m tests.gpu                    on a GPU, in under nine minutes
    python -m tests.gpu --device cpu       in under two
    python -m tests.gpu --only speed       one part of it

It needs no Ray. What needs a GPU and did not run is named at the end. The exit code is 1 if a test or a measurement
fails, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEVICE_VARIABLE = "RAYGEN_TEST_DEVICE"  # tests/device.py reads it, which imports torch
NEEDS_CUDA = "needs CUDA: "
LIMIT_S = 535.0
"""Seconds for everything."""


@dataclass(frozen=True)
class Part:
    """Tests, or a function of a module here that prints tables, in a process of its own: its errors end no other."""

    name: str
    limit_s: float
    tests: str | None = None
    function: str = ""


PARTS = (
    Part("contract", 240, tests="tests/models/test_contract.py"),
    Part("tests", 270, tests="tests/gpu"),
    Part("speed", 220, function="compare_loops"),
    Part("sharing", 150, function="compare_numbers"),
    Part("options", 90, function="compare_options"),
    Part("judging", 60, function="compare_devices"),
)
MODULES = {"options": "speed"}


def main() -> int:
    """Run what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="Tests and measurements of a GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", choices=[part.name for part in PARTS], help="one part")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # a process that runs one part
    options = parser.parse_args()
    by_name = {part.name: part for part in PARTS}
    if options.inside:
        return _inside(by_name[options.only])
    if options.device == "cuda" and not _has_gpu():
        print("tests.gpu: CUDA can use no GPU here: type python -m tests.gpu --device cpu", file=sys.stderr)
        return 2
    if options.only:
        stages = [[by_name[options.only]]]
    elif options.device == "cpu":
        print("contract is left out: `make test` runs it on a CPU")
        stages = [[part for part in PARTS if part.name != "contract"]]  # all at once: their figures mean nothing
    else:
        stages = [list(PARTS[:2]), *([part] for part in PARTS[2:])]
    return _run(stages, options.device)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _run(stages: Sequence[Sequence[Part]], device: str) -> int:
    """Run the parts of each stage at once, and print what each said; returns the exit code."""
    started_s, left_out, failed = time.monotonic(), [], []
    for stage in stages:
        limit_s = LIMIT_S - (time.monotonic() - started_s)
        with ThreadPoolExecutor(len(stage)) as threads:
            running = [(part, threads.submit(_ran, part, device, min(part.limit_s, limit_s))) for part in stage]
            for part, future in running:
                code, lines = future.result()
                left_out += [line for line in lines if line.startswith(NEEDS_CUDA)]
                failed += [part.name] if code else []
                print("", *(line for line in lines if not line.startswith(NEEDS_CUDA)), sep="\n", flush=True)
    print("", *left_out, sep="\n")
    print(f"{time.monotonic() - started_s:.0f} s; {'failed: ' + ', '.join(failed) if failed else 'all parts passed'}")
    return 1 if failed else 0


def _ran(part: Part, device: str, limit_s: float) -> tuple[int, list[str]]:
    """The exit code and the lines of a part in a process of its own, which gets so many seconds."""
    command = [sys.executable, "-m", "tests.gpu", "--device", device, "--only", part.name, "--inside"]
    # Parts that run at once on a CPU share its cores: with two threads each they would wait for one another.
    threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    environment = {**os.environ, DEVICE_VARIABLE: device, **threads}
    started_s = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code, last = process.wait(max(limit_s, 1)), []
        except subprocess.TimeoutExpired:
            code, last = 1, [f"{part.name} was stopped after {limit_s:.0f} s"]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            process.wait()
        output.seek(0)
        return code, [f"── {part.name}, {time.monotonic() - started_s:.0f} s ──", *output.read().splitlines(), *last]


def _inside(part: Part) -> int:
    """Run one part in this process; returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="raygen-tests-") as folder:
        os.environ["RAYGEN_CACHE"] = folder
        if part.tests is None:
            getattr(importlib.import_module(f"tests.gpu.{MODULES.get(part.name, part.name)}"), part.function)()
            return 0
        import pytest

        return int(pytest.main([part.tests, "-q", "-p", "no:cacheprovider", "--timeout=150"]))


if __name__ == "__main__":
    sys.exit(main())
