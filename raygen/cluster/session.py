"""What every process that uses Ray has in its environment, and what a cluster has."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from fnmatch import fnmatchcase
from ipaddress import ip_address
from urllib.parse import urlsplit

import psutil

from raygen.capacity import Capacity
from raygen.cluster import gpus
from raygen.errors import ResourceError

LOCALHOST = "127.0.0.1"

ON_THIS_MACHINE = (LOCALHOST, "localhost", "::1")
"""What this machine calls itself."""

DEFAULT_PORTS = {"http": 80, "https": 443}
"""The schemes of dashboards' addresses, with the ports that need not be written."""

ENVIRONMENT = {
    # The record holds every result, so Tune's own files beside it would be a second, poorer copy.
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

PASSED = (
    # Where things are, and who the person is.
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_*_HOME", "XDG_RUNTIME_DIR"),
    *("LD_*", "DYLD_*", "CC", "CXX", "CPATH", "LIBRARY_PATH", "PYTHON*", "VIRTUAL_ENV", "CONDA_*"),
    # Languages and clocks.
    *("LANG", "LANGUAGE", "LC_*", "TZ"),
    # The way to the network.
    *("[a-z]*_proxy", "[A-Z]*_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # Devices and libraries that compute on them.
    *("CUDA_*", "NVIDIA_*", "NCCL_*", "GLOO_*", "CUDNN_*", "CUBLAS_*", "HIP_*", "ROCR_*", "HSA_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "OMP_*", "MKL_*", "KMP_*", "OPENBLAS_*", "MALLOC_*", "MPL*"),
    # Credentials of storages.
    *("AWS_*", "AZURE_*", "GOOGLE_*", "IDENTITY_*", "MSI_*"),
    *("RAY_*", "RAYGEN_*", "TUNE_*"),
)
"""The variables, as patterns, of whoever starts a head that the head and its jobs have too: no others."""

HELD_BACK = {"RAY_ADDRESS", "RAYGEN_DB"}
"""What a head must not have: it is no client of another, and its jobs have no business with the queue."""


def environment() -> dict[str, str]:
    """The environment of a process that will use Ray; what the person has set stays as it is.

    Proxies are for other machines: what is asked on this one, with a token, is asked of nobody else.
    """
    return {**ENVIRONMENT, **os.environ, **_around_proxies(os.environ)}


def _around_proxies(variables: Mapping[str, str]) -> dict[str, str]:
    """What keeps a question to this machine from a proxy; libraries read one of two names, or the other."""
    names = ("no_proxy", "NO_PROXY")
    hosts = [host.strip() for name in names for host in variables.get(name, "").split(",") if host.strip()]
    if "*" in hosts:
        return dict.fromkeys(names, "*")
    return dict.fromkeys(names, ",".join(dict.fromkeys([*hosts, *ON_THIS_MACHINE])))


def on_loopback() -> dict[str, str]:
    """What keeps Ray and torch on this machine to its loopback interface, unless a person has set it otherwise."""
    addresses = psutil.net_if_addrs().items()
    loopback = [name for name, found in addresses if any(each.address == LOCALHOST for each in found)]
    # Without it Ray takes 127.0.0.1 for another word for the machine's address in its network.
    only = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return only | {name: loopback[0] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if loopback}


def passed(variables: Mapping[str, str]) -> dict[str, str]:
    """What of a person's environment a head on this machine is started with."""
    return {
        name: value
        for name, value in variables.items()
        if name not in HELD_BACK and any(fnmatchcase(name, pattern) for pattern in PASSED)
    }


def dashboard_address(given: str | None) -> str | None:
    """The address of a running cluster's dashboard, `given` or the environment's; None means this machine's own.

    Its spellings are one: the queue calls the cluster by it. Raises ResourceError if it is none, or holds a password.
    """
    address = given or os.environ.get("RAYGEN_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        return None
    try:
        parts = urlsplit(address.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if "@" in address or "?" in address or "#" in address:
        raise ResourceError(
            "an address is shown to everybody who uses the queue, and must not hold a user, a password or a query; "
            "write http://HOST:8265, and have Ray's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    if parts.scheme not in DEFAULT_PORTS or not host:
        raise ResourceError(
            f"{address} is not the address of a Ray dashboard; write http://HOST:8265 as --address "
            "(or RAYGEN_ADDRESS), or leave it out to use this machine"
        )
    host = _one_spelling(host)
    place = host if port in (None, DEFAULT_PORTS[parts.scheme]) else f"{host}:{port}"
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}"


def _one_spelling(host: str) -> str:
    """A host's name or number as it is written in an address; `parts.hostname` is in lower case already."""
    try:
        number = ip_address(host)
    except ValueError:
        return LOCALHOST if host == "localhost" else host
    return str(number) if number.version == 4 else f"[{number.compressed}]"


def cluster_name(address: str | None) -> str:
    """What the queue calls the cluster at an address that `dashboard_address` gave, or this machine's own."""
    return address or f"local:{socket.gethostname()}"


def local_capacity() -> Capacity:
    """What this machine has for programs; raises ServiceError if its GPUs cannot be counted."""
    # Slow to import, and not needed where a dispatcher has said what there is.
    import joblib

    return Capacity.of_machine(gpus=len(gpus.here()), cpus=joblib.cpu_count(), where="this machine")
