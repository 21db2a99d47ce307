"""What every process that uses Ray has in its environment, and what a cluster has."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from raygen.capacity import Capacity
from raygen.errors import ResourceError

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
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What a process that uses Ray needs in its environment before it imports ray."""


def environment() -> dict[str, str]:
    """The environment of a process that will use Ray; what the person has set stays as it is."""
    return {**ENVIRONMENT, **os.environ}


def dashboard_address(given: str | None) -> str | None:
    """The address of a running cluster's dashboard, `given` or the environment's; None means this machine's own.

    Raises ResourceError where it is none.
    """
    address = given or os.environ.get("RAYGEN_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        return None
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ResourceError(
            f"{address} is not the address of a Ray dashboard; write http://HOST:8265 as --address "
            "(or RAYGEN_ADDRESS), or leave it out to use this machine"
        )
    return address.rstrip("/")


def cluster_name(address: str | None) -> str:
    """What the queue calls the cluster at an address, or this machine's own."""
    return address or f"local:{socket.gethostname()}"


def local_capacity() -> Capacity:
    """What this machine has for programs."""
    # Slow to import, and not needed where a dispatcher has said what there is.
    import joblib

    return Capacity.of_machine(gpus=_local_gpus(), cpus=joblib.cpu_count(), where="this machine")


def _local_gpus() -> int:
    """GPUs that programs on this machine may use, counted without starting CUDA."""
    import pynvml

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
