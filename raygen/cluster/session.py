"""Ray sessions: what a cluster has, and connecting to one or starting one on this machine."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys

import joblib
import pynvml

from raygen.errors import ResourceError
from raygen.plan import Capacity, Plan

CONNECT_TIMEOUT_S = 2.0
LOCAL = "local"

ENVIRONMENT = {
    # The run folder holds every result, so Tune's own files beside it would be a second, poorer copy.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that stops before its first epoch reports no objective, and must not end the search.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The driver has its own answer to a signal: ask the trials to stop, and wait for their checkpoints.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Paths that the person typed stay relative to where they typed them.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The default of 2 s is most of the time that a short training on several devices takes.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Whether anybody listens at an address is known before Ray is asked, so it need not try for 20 s.
    "RAY_NUM_REDIS_GET_RETRIES": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What a process that uses Ray needs in its environment before it imports ray."""


def capacity(address: str | None) -> Capacity:
    """What the cluster at `address` has, or this machine where there is none; ResourceError if it is silent.

    A process of its own asks the cluster, so that Ray stays out of the caller's process and off its screen.
    """
    address = _resolved(address)
    if address == LOCAL:
        return Capacity(gpus=_local_gpus(), cpus=joblib.cpu_count(), where="this machine")
    if address != "auto":
        _check_reachable(address)
    asked = subprocess.run(
        [sys.executable, "-m", __name__, address],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        reason = asked.stderr.strip().rpartition("\n")[2]
        raise ResourceError(
            f"cannot join the Ray cluster at {address} ({reason}); if it asks for a token, as Ray's own clusters "
            "do by default, set RAY_AUTH_MODE=token and have the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    resources = json.loads(asked.stdout)
    return Capacity(
        gpus=int(resources.get("GPU", 0)), cpus=int(resources.get("CPU", 0)), where=f"the cluster at {address}"
    )


def connect(address: str | None, plan: Plan) -> None:
    """Join the cluster at `address`, the environment's, or else start one on this machine with the plan's devices.

    Raises ResourceError where the cluster does not answer.
    """
    import ray

    address = _resolved(address)
    if address != LOCAL:
        try:
            ray.init(address=address, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ResourceError(f"cannot join the Ray cluster at {address}: {error}") from error
        return
    ray.init(
        address=LOCAL,
        num_cpus=plan.cpus,
        num_gpus=math.ceil(plan.gpus),
        include_dashboard=False,
        logging_level=logging.ERROR,
    )


def environment() -> dict[str, str]:
    """The environment of a process that will use Ray; what the person has set stays as it is."""
    return {**ENVIRONMENT, **os.environ}


def _resolved(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def _check_reachable(address: str) -> None:
    """Ray itself tries for half a minute before it gives up; a closed port is known at once."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S):
            return
    except (OSError, ValueError, OverflowError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address} ({error}); give HOST:PORT of its head as --address, "
            "or leave it out to start one on this machine"
        ) from error


def _local_gpus() -> int:
    """GPUs that programs on this machine may use, counted without starting CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        count: int = pynvml.nvmlDeviceGetCount()
    finally:
        pynvml.nvmlShutdown()
    return count if visible is None else min(count, len([part for part in visible.split(",") if part.strip()]))


def _print_resources(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    print(json.dumps(ray.cluster_resources()))


if __name__ == "__main__":
    _print_resources(sys.argv[1])
