"""Run a command beside a Ray cluster that Ray's own autoscaler makes larger and smaller, and watch its nodes.

The cluster begins with a head that has no devices; nodes are raylets of this machine. All of it runs in namespaces of
its own: Ray's usual ports are free there, and Ray finds no other cluster. By hand, with what Ray wrote left in FOLDER:

    python tests/nodes/autoscaled.py --folder FOLDER --node '{"CPU": 1}' raygen tune vae --address http://127.0.0.1:8265
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from namespaces import UNSHARE

GCS = "127.0.0.1:6379"
DASHBOARD = "http://127.0.0.1:8265"
RAY_FOLDER = Path("/tmp/ray")
START_TIMEOUT_S = 60
GOING_TIMEOUT_S = 90
"""Seconds that the nodes get to go after the command has ended."""
LOOK_EVERY_S = 0.5
OBJECT_STORE_BYTES = 100_000_000


@dataclass(frozen=True)
class Observed:
    """What became of a command and of the nodes that it was run beside; seconds count from the command's start."""

    exit_code: int
    output: str
    ended_at_s: float
    nodes_alive: list[tuple[float, int]]
    """Seconds and the number of nodes alive from then on, without the head."""
    nodes: list[dict[str, Any]]
    """The last that Ray says of each node."""

    @property
    def most_alive(self) -> int:
        """The largest number of nodes at once."""
        return max(count for _, count in self.nodes_alive)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} from {at_s:.1f} s" for at_s, count in self.nodes_alive)
        return f"nodes alive: {counts}; the command ended after {self.ended_at_s:.1f} s"


def run_autoscaled(
    command: Sequence[str],
    folder: Path,
    *,
    node: Mapping[str, int],
    max_nodes: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 240,
) -> Observed:
    """Run a command beside a cluster of at most `max_nodes` nodes that have the resources `node` each.

    What Ray and the command write is left in `folder`.
    """
    own = [sys.executable, __file__, "--inside", "--folder", str(folder), "--node", json.dumps(dict(node))]
    subprocess.run(
        [*UNSHARE, *own, "--max-nodes", str(max_nodes), *command],
        env={**os.environ, **(environment or {}), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        timeout=timeout_s,
        check=True,
    )
    return Observed(**json.loads((folder / "observed.json").read_text(encoding="utf-8")))


def _set_up_namespaces(folder: Path) -> None:
    """Bring the loopback network up and put `folder`/ray in the place of Ray's temporary folder."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket() as any_socket:
        answer = fcntl.ioctl(any_socket, get_flags, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack("16sh14x", answer)[1] | up
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags))
    own = folder / "ray"
    own.mkdir(parents=True)
    RAY_FOLDER.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(own), str(RAY_FOLDER)], check=True)


def _autoscaling(node: Mapping[str, int], max_nodes: int) -> dict[str, Any]:
    """What Ray's autoscaler reads: nodes of one type, none at first, which go after 6 s without work."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

    return {
        "cluster_name": "autoscaled",
        "max_workers": max_nodes,
        "idle_timeout_minutes": 0.1,
        "provider": {
            # By its name, `fake_multinode`, the provider would need a file of defaults that Ray's wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": GCS,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        # There is nothing to set up or to copy, but Ray asks for these.
        **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        "cluster_synced_files": [],
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {**node, "object_store_memory": OBJECT_STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
    }


def _start_head(folder: Path, autoscaling: Mapping[str, Any]) -> None:
    """Start a head without devices; it ends with its namespace."""
    head_id = autoscaling["provider"]["head_node_id"]
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # The autoscaler knows the head by the number that its provider gives it.
        "RAY_CLOUD_INSTANCE_ID": head_id,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id,
    }
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(autoscaling), encoding="utf-8")
    command = [
        *("ray", "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={config}"),
        *("--node-ip-address=127.0.0.1", f"--port={GCS.rpartition(':')[2]}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD.rpartition(':')[2]}"),
        *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={OBJECT_STORE_BYTES}"),
    ]
    with (folder / "head.log").open("wb") as log:
        subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)


def _nodes() -> list[dict[str, Any]]:
    """What Ray says of every node that there is or was, the head left out."""
    from ray.util.state import list_nodes

    return [vars(node) for node in list_nodes(address=DASHBOARD, detail=True) if not node.is_head_node]


def _wait_for_head() -> None:
    from ray.util.state.exception import RayStateApiException

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RayStateApiException):
            _nodes()
            return
        time.sleep(LOOK_EVERY_S)
    sys.exit(f"Ray's head did not start within {START_TIMEOUT_S} s")


def _watch(command: Sequence[str], folder: Path) -> Observed:
    """Run the command, and watch the nodes until they have gone or GOING_TIMEOUT_S have passed since its end."""
    output = folder / "output.txt"
    started = time.monotonic()
    nodes_alive: list[tuple[float, int]] = []
    ended_at_s = None
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    while True:
        if ended_at_s is None and process.poll() is not None:
            ended_at_s = time.monotonic() - started
        nodes = _nodes()
        now_s = time.monotonic() - started
        alive = sum(node["state"] == "ALIVE" for node in nodes)
        if not nodes_alive or nodes_alive[-1][1] != alive:
            nodes_alive.append((now_s, alive))
        if ended_at_s is not None and (alive == 0 or now_s > ended_at_s + GOING_TIMEOUT_S):
            text = output.read_text(encoding="utf-8", errors="replace")
            return Observed(process.returncode, text, ended_at_s, nodes_alive, nodes)
        time.sleep(LOOK_EVERY_S)


def main() -> None:
    """Run what was typed: outside, in namespaces made for it; inside, beside a cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, required=True, help="an empty or new one")
    parser.add_argument("--node", type=json.loads, default={"CPU": 1}, help="a node's resources, as JSON")
    parser.add_argument("--max-nodes", type=int, default=2)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    typed = parser.parse_args()
    folder = typed.folder.absolute()
    if not typed.inside:
        print(run_autoscaled(typed.command, folder, node=typed.node, max_nodes=typed.max_nodes))
        return
    os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported, here and in the command
    _set_up_namespaces(folder)
    _start_head(folder, _autoscaling(typed.node, typed.max_nodes))
    _wait_for_head()
    observed = _watch(typed.command, folder)
    (folder / "observed.json").write_text(json.dumps(asdict(observed)), encoding="utf-8")


if __name__ == "__main__":
    main()
