"""A bed for docker/compose.yaml on a machine that reaches no image registry: podman, and one small image for all.

By hand, from the top of a clone:

    python -m tests.containers.testbed up 2         # Ray's head and 2 workers, PostgreSQL, S3, dispatcher
    eval "$(python -m tests.containers.testbed env)"
    raygen tune vae
    python -m tests.containers.testbed kill worker_1       # as a crash; `podman kill raygen-testbed_worker_1` for good
    python -m tests.containers.testbed down

It runs as root, with `apt-get install --no-install-recommends podman crun netavark aardvark-dns iptables catatonit
mmdebstrap`, and podman-compose and moto in the Python that runs it. Its images and containers are its own.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "stand_in"
PLACE = Path("/var/tmp/raygen-testbed")
NAME = "raygen-testbed"
PROGRAMS = ("podman", "crun", "mmdebstrap", "nsenter", "unshare")
DEBIAN, PYTHON = "bookworm", (3, 11)
PACKAGES = ("ca-certificates", "curl", "postgresql", "python3")
START_TIMEOUT_S = 60.0
PORTS = ("DASHBOARD_PORT", "POSTGRES_PORT", "S3_PORT")

CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
cgroups = "disabled"
[network]
network_backend = "netavark"
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""Podman as it works for a root without power over resources, as in a container or a small virtual machine."""


class Testbed:
    """Compose's cluster in containers of this machine, with all that it writes in one folder."""

    __test__ = False  # to pytest

    def __init__(self, place: Path = PLACE) -> None:
        self.place = place
        self.image = f"localhost/{NAME}:{DEBIAN}"

    @staticmethod
    def missing() -> str | None:
        """What keeps it from running here, in a few words; None if nothing does."""
        for program in PROGRAMS:
            if shutil.which(program) is None:
                return f"{program} is not installed"
        for module in ("podman_compose", "moto"):
            if find_spec(module) is None:
                return f"{module} is not installed"
        if sys.version_info[:2] != PYTHON:
            return f"Python's packages are mounted in an image of {DEBIAN}, which has another Python"
        return "it needs root" if os.getuid() else None

    def make_image(self) -> None:
        """Make the stand-in from Debian's packages, unless that was done."""
        if self.podman("image", "exists", self.image, check=False).returncode == 0:
            return
        root = self.place / "root.tar"
        user = 'useradd --root="$1" --create-home --uid=1000 raygen'
        options = ["--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}", f"--customize-hook={user}"]
        subprocess.run(["mmdebstrap", *options, DEBIAN, str(root)], check=True)
        self.podman("import", "--quiet", "--change", "WORKDIR /home/raygen", str(root), self.image)
        root.unlink()

    def up(self, workers: int) -> None:
        """Start everything; returns when the dispatcher works, which is before all Ray nodes do.

        Raises RuntimeError if it does not within a minute.
        """
        self._write_settings()
        self.compose("up", "--detach", "--no-build", f"--scale=worker={workers}")
        dispatcher = self.container("dispatcher_1")
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.podman("healthcheck", "run", dispatcher, check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no dispatcher: {self.podman('logs', '--tail=5', dispatcher).stderr}")
            # Podman before 4.6 waits for no health, so it may have come, and gone, before its database.
            self.podman("start", dispatcher, check=False)
            time.sleep(0.5)

    def is_up(self) -> bool:
        """Whether there are containers of it."""
        return bool(self.podman("ps", "--all", "--quiet").stdout)

    def container(self, name: str) -> str:
        """What podman calls a container such as "worker_1"."""
        return f"{NAME}_{name}"

    def kill(self, name: str) -> None:
        """End a container's first process as a crash would, so that it starts again; `podman kill` keeps it down."""
        pid = self.podman("inspect", "--format={{.State.Pid}}", self.container(name)).stdout
        os.kill(int(pid), signal.SIGKILL)

    def down(self) -> None:
        """End everything, and forget what it has stored; the image is kept."""
        # Podman leaves a container be that another needs, so one look at all of them is not enough.
        for _ in range(10):
            if not self.is_up():
                break
            self.podman("rm", "--all", "--force", "--time=2", check=False)
        self.podman("network", "prune", "--force")
        self.podman("volume", "prune", "--force")
        self._forget_mounts()

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run podman-compose on docker/compose.yaml and the stand-ins."""
        files = [ROOT / "docker" / "compose.yaml", HERE / "compose.yaml"]
        options = ["--in-pod=false", f"--env-file={self._settings}", f"--project-name={NAME}"]
        options += [f"--file={file}" for file in files]
        return self._run([sys.executable, "-m", "podman_compose", *options, *arguments])

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman on the bed's own images and containers."""
        return self._run(["podman", *arguments], check=check)

    def environment(self) -> dict[str, str]:
        """What docker/host.env makes of the settings: what `raygen` on this machine has in its environment."""
        files = " ".join(f". {shlex.quote(str(file))};" for file in (self._settings, ROOT / "docker" / "host.env"))
        script = f"set -a; {files} exec env --null"
        printed = subprocess.run(["env", "-i", "sh", "-euc", script], stdout=subprocess.PIPE, check=True, text=True)
        pairs = (line.partition("=") for line in printed.stdout.rstrip("\0").split("\0"))
        return {name: value for name, _, value in pairs if name not in ("PWD", "_", "SHLVL", "OLDPWD")}

    @property
    def _settings(self) -> Path:
        return self.place / ".env"

    def _write_settings(self) -> None:
        """The secrets that docs/clusters.md has a person make, ports that are free, and what is mounted."""
        names = ("POSTGRES_PASSWORD", "S3_SECRET_KEY", "RAY_TOKEN")
        settings = {name: secrets.token_hex(20) for name in names}
        settings |= dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        ray = find_spec("ray")
        assert ray is not None
        assert ray.origin is not None
        settings |= {"STAND_IN": self.image, "PROJECT": str(ROOT), "PACKAGES": str(Path(ray.origin).parents[1])}
        self.place.mkdir(parents=True, exist_ok=True)
        self._settings.touch(mode=0o600)
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")

    def _run(self, command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command with the bed's settings of podman, and the mounts that earlier ones have made."""
        settings = {name: self.place / f"{name.lower()}.conf" for name in ("containers", "storage")}
        self.place.mkdir(parents=True, exist_ok=True)
        settings["containers"].write_text(CONTAINERS_CONF, encoding="utf-8")
        storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{self.place}/images"\nrunroot = "{self.place}/run"\n'
        settings["storage"].write_text(storage, encoding="utf-8")
        done = subprocess.run(
            ["nsenter", f"--mount={self._mounts()}", f"--wd={os.getcwd()}", "--", *command],
            env={
                **os.environ,
                "CONTAINERS_CONF": str(settings["containers"]),
                "CONTAINERS_STORAGE_CONF": str(settings["storage"]),
            },
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.stderr[-2000:] or done.stdout[-2000:]}")
        return done

    def _mounts(self) -> Path:
        """A mount namespace, kept until `down`, where no half of a cgroup hierarchy confuses crun."""
        folder = self.place / "namespaces"
        kept = folder / "mounts"
        if not os.path.ismount(kept):
            folder.mkdir(parents=True, exist_ok=True)
            kept.touch()
            # What is kept so must lie on a mount that passes nothing on.
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            subprocess.run(["mount", "--make-private", str(folder)], check=True)
            leave = "umount /sys/fs/cgroup/unified 2>/dev/null || true"
            subprocess.run(["unshare", f"--mount={kept}", "--propagation=private", "sh", "-c", leave], check=True)
        return kept

    def _forget_mounts(self) -> None:
        folder = self.place / "namespaces"
        if os.path.ismount(folder / "mounts"):
            subprocess.run(["umount", str(folder / "mounts")], check=True)
            subprocess.run(["umount", str(folder)], check=True)


def _free_ports(count: int) -> list[str]:
    """Ports of the loopback interface that nobody listens at now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def main(command: str, *arguments: str) -> None:
    """Run one of the commands of this file's docstring."""
    bed = Testbed()
    if (missing := bed.missing()) is not None:
        sys.exit(f"the test bed cannot run: {missing}")
    if command == "up":
        bed.make_image()
        began = time.monotonic()
        bed.up(int(arguments[0]))
        print(f"the dispatcher works after {time.monotonic() - began:.1f} s")
    elif command == "env":
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in bed.environment().items()))
    elif command == "kill":
        bed.kill(*arguments)
    elif command == "podman":
        done = bed.podman(*arguments, check=False)
        print(done.stdout, end="")
        sys.exit(done.stderr.strip() or done.returncode)
    elif command == "down":
        bed.down()
    else:
        sys.exit(f"there is no {command!r}; write up N, env, kill NAME, podman …, or down")


if __name__ == "__main__":
    main(*sys.argv[1:])
