"""How the processes of one training find each other: where others cannot reach them, if all are on this machine."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from raygen.cluster.gpus import VARIABLE
from raygen.cluster.session import LOCALHOST


@dataclass
class PrivateTorchConfig(TorchConfig):
    """Ray's own, except that the first process of a training on loopback listens there alone."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray sets the processes up with."""
        return _PrivateBackend


class _PrivateBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_listen_on_loopback_alone)
        super().on_start(worker_group, suitable(backend_config, worker_group.execute(has_mig_device)))


def suitable(config: TorchConfig, on_mig_devices: Sequence[bool]) -> TorchConfig:
    """The configuration for processes of which these are on MIG devices: NCCL joins no two parts of one GPU."""
    return replace(config, backend="gloo") if any(on_mig_devices) else config


def has_mig_device() -> bool:
    """Whether what this process was given as a GPU is a part of one."""
    return os.environ.get(VARIABLE, "").startswith("MIG-")


def _listen_on_loopback_alone() -> None:
    """Have torch make its stores with `_store`: it has no setting for where they listen, which is everywhere."""
    # In the package, the module's name is a function's.
    importlib.import_module("torch.distributed.rendezvous").TCPStore = _store  # type: ignore[attr-defined]


def _store(host_name: str, port: int, **options: Any) -> TCPStore:
    """The place where processes leave each other messages; it asks nobody who they are."""
    if options["is_master"] and host_name == LOCALHOST:
        options["master_listen_fd"] = socket.create_server((host_name, port)).detach()
    return TCPStore(host_name=host_name, port=port, **options)
