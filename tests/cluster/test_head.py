"""Ray's head as its starter sees it: missing, crashing, forgotten. In Ray's place stands a program of the test's."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygen import machine
from raygen.capacity import Capacity
from raygen.cluster import background, gpus, local, session
from raygen.cluster import head as heads_module
from raygen.cluster.head import Head
from raygen.cluster.local import LocalCluster
from raygen.cluster.standing import Standing
from raygen.errors import ClusterUnreachableError, ServiceError

CAPACITY = Capacity.of_machine(gpus=0, cpus=2, where="here")

ANSWERS = """
import http.server, sys
options = dict(each.lstrip("-").split("=", 1) for each in sys.argv if "=" in each)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.HTTPServer((options["dashboard-host"], int(options["dashboard-port"])), Answer).serve_forever()
"""
"""A head that runs, with a dashboard that says yes to everything."""


class FakeRay:
    """What is called `ray` beside Python."""

    def __init__(self, folder: Path) -> None:
        self.path, self._starts = folder / "ray", folder / "starts"

    def does(self, program: str) -> None:
        """Run this program in Python whenever it is started."""
        counted = f'open({str(self._starts)!r}, "a").write("x")\n'
        self.path.write_text(f"#!{REAL_PYTHON}\n{counted}{textwrap.dedent(program)}")
        self.path.chmod(0o755)

    @property
    def starts(self) -> int:
        return len(self._starts.read_text()) if self._starts.exists() else 0


REAL_PYTHON = sys.executable


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return FakeRay(folder)


@pytest.fixture
def head(tmp_path: Path, ray: FakeRay) -> Iterator[Head]:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    head = Head(folder)
    yield head
    head.stop()


def heads(ray: FakeRay) -> set[int]:
    """The heads of this test that run, by the number of their process."""
    return {each.pid for each in psutil.process_iter() if {str(ray.path), "--head"} <= set(_command(each))}


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_head_runs_until_it_is_stopped(head: Head, ray: FakeRay) -> None:
    ray.does(ANSWERS)
    assert (head.address, head.capacity) == (None, None)
    address = head.ensure(CAPACITY)
    assert head.ensure(CAPACITY) == address == head.address
    assert head.capacity is not None
    assert (head.capacity.gpus, head.capacity.cpus) == (0, 2)
    assert ray.starts == 1
    head.stop()
    assert (head.address, head.capacity) == (None, None)


def test_a_proxy_keeps_no_head_from_being_seen_and_sees_no_token(
    head: Head, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.does(ANSWERS)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert head.ensure(CAPACITY) == head.address
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_ray_that_is_missing_is_told(head: Head, ray: FakeRay) -> None:
    with pytest.raises(ServiceError, match=rf"^cannot start {ray.path}: No such file or directory$"):
        head.ensure(CAPACITY)
    assert head.address is None


def test_a_ray_that_cannot_be_run_is_told(head: Head, ray: FakeRay) -> None:
    ray.does("")
    ray.path.chmod(0o644)
    with pytest.raises(ServiceError, match=rf"^cannot start {ray.path}: Permission denied$"):
        head.ensure(CAPACITY)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('some words'); print('no more memory')", "no more memory"),
        ("import os; os._exit(3)", "it ended with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with exit code -9"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 10]))", "\ufffd"),
    ],
)
def test_a_ray_that_crashes_is_told_with_its_last_words(head: Head, ray: FakeRay, program: str, reason: str) -> None:
    head.log.write_text("words of an earlier start\n")
    ray.does(program)
    for _ in range(2):
        with pytest.raises(ServiceError, match=f"^Ray did not start on this machine: {reason} ") as raised:
            head.ensure(CAPACITY)
        assert str(head.log) in str(raised.value)
        assert head.address is None


DAMAGED = [
    b"",
    b"{}",
    b"null",
    b"[]",
    b"\xff\xfe",
    b'{"pid": 1',
    b'{"pid": "one"}',
    b'{"pid": 1, "more": 2}',
    b"\0" * 80,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_about_the_head_loses_no_head(head: Head, ray: FakeRay, tmp_path: Path, content: bytes) -> None:
    ray.does(ANSWERS)
    head.ensure(CAPACITY)
    [first] = heads(ray)
    (tmp_path / "state" / "head.json").write_bytes(content)
    assert (head.address, head.capacity) == (None, None)
    head.ensure(CAPACITY)
    [second] = heads(ray)
    assert second != first, "of which nothing is known was ended, and another started"
    (tmp_path / "state" / "head.json").write_bytes(content)
    head.stop()
    assert heads(ray) == set()


@pytest.mark.parametrize("content", [b"", b"x", b"\xff", b"0" * 63])
def test_a_damaged_token_is_made_anew(head: Head, tmp_path: Path, content: bytes) -> None:
    first = head.token()
    assert head.token() == first
    (tmp_path / "state" / "token").write_bytes(content)
    second = head.token()
    assert len(second) == 64
    assert second != first
    assert Head(tmp_path / "state").token() == second
    assert stat.S_IMODE((tmp_path / "state" / "token").stat().st_mode) == 0o600


def test_two_who_find_no_token_have_one(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, others = heads_module._token, []

    def find(path: Path) -> str | None:
        """Look; and before whoever looked goes on, another makes one."""
        token = found(path)
        if not others:
            others.append("")
            others[0] = Head(tmp_path / "state").token()
        return token

    monkeypatch.setattr(heads_module, "_token", find)
    assert head.token() == others[0] == (tmp_path / "state" / "token").read_text()


def test_a_token_that_cannot_be_written_leaves_nothing(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", no_space)
        with pytest.raises(ServiceError, match="No space left"):
            head.token()
    assert [each.name for each in (tmp_path / "state").iterdir() if each.name != "head.lock"] == []
    assert head.token()


def no_space(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_sessions_of_earlier_heads_do_not_pile_up(head: Head, ray: FakeRay, tmp_path: Path) -> None:
    ray.does(
        """
        import pathlib, sys, time
        folder = next(each.partition("=")[2] for each in sys.argv if each.startswith("--temp-dir="))
        (pathlib.Path(folder) / f"session_2{time.time_ns()}" / "logs").mkdir(parents=True)
        sys.exit("no room")
        """
    )
    for _ in range(5):
        with pytest.raises(ServiceError, match="no room"):
            head.ensure(CAPACITY)
    folder = machine.known_temporary_folder(tmp_path / "state")
    assert folder is not None
    sessions = sorted(folder.glob("ray/session_*"))
    assert len(sessions) <= 2, "the last one, and the one before it, which may tell why it ended"
    logs = [sessions[-1] / "logs" / f"job-driver-{name}.log" for name in ("a-1", "a-11")]
    for log in logs:
        log.write_text("x")
    head.remove_log("a-1")
    head.remove_log("*")
    assert [log.exists() for log in logs] == [False, True]


@pytest.mark.parametrize("step_s", [1, -1, 3600])
def test_a_step_of_the_clock_neither_loses_nor_doubles_a_head(
    head: Head, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    ray.does(ANSWERS)
    address = head.ensure(CAPACITY)
    stepped = psutil.boot_time() + step_s
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: stepped)
    assert head.ensure(CAPACITY) == address == head.address
    assert ray.starts == 1


def test_a_number_that_another_process_has_now_is_not_the_heads(head: Head, ray: FakeRay, tmp_path: Path) -> None:
    ray.does(ANSWERS)
    head.ensure(CAPACITY)
    file = tmp_path / "state" / "head.json"
    content = file.read_text()
    head.stop()
    bystander = subprocess.Popen([REAL_PYTHON, "-c", "import time; time.sleep(60)", "raylet"], start_new_session=True)
    try:
        pid = content.partition('"pid":')[2].partition(",")[0]
        file.write_text(content.replace(f'"pid":{pid}', f'"pid":{bystander.pid}'))
        assert head.address is None
        head.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_log_is_bounded(head: Head, ray: FakeRay) -> None:
    ray.does(f"print('x' * {background.MOST_BYTES // 2})")
    for _ in range(6):
        with pytest.raises(ServiceError):
            head.ensure(CAPACITY)
    logs = sum(each.stat().st_size for each in head.log.parent.glob("head.log*"))
    assert background.MOST_BYTES < logs < 4 * background.MOST_BYTES


def test_a_log_that_cannot_be_written_keeps_nothing_from_running(head: Head, ray: FakeRay) -> None:
    ray.does(ANSWERS)
    head.log.mkdir()
    assert head.ensure(CAPACITY)


@pytest.mark.parametrize(
    ("capacity", "named"),
    [
        (Capacity.of_machine(gpus=2, cpus=2, where="here"), "GPU-a,MIG-b shared=0"),
        (CAPACITY, "none"),
    ],
)
def test_a_head_is_told_which_mig_devices_there_are(
    head: Head, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capacity: Capacity, named: str
) -> None:
    """They have no numbers, which Ray would hand out."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [gpus.Gpu(uuid=uuid, memory_bytes=2**30) for uuid in ("GPU-a", "MIG-b")]
    monkeypatch.setattr(gpus, "here", lambda: found)
    ray.does(
        """
        import os, sys
        shared = os.environ.get("TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES")
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        sys.exit(f"{devices} shared={shared}" if devices else "none")
        """
    )
    with pytest.raises(ServiceError, match=f"on this machine: {named} "):
        head.ensure(capacity)


class Clock:
    """A clock that the test sets, for one module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(local, "time", clock)
    return clock


class FakeJobs:
    """Where Ray's Jobs API would be asked."""

    def __init__(self, address: str) -> None:
        self.address = address

    def capacity(self) -> Capacity:
        return CAPACITY


@pytest.fixture
def cluster(head: Head, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.setattr(LocalCluster, "_connected", lambda self, address: FakeJobs(address))
    monkeypatch.setattr(session, "local_capacity", lambda: CAPACITY)
    return LocalCluster(head, Standing(tmp_path / "state"))


def problem_of(cluster: LocalCluster) -> str:
    with pytest.raises(ClusterUnreachableError) as raised:
        cluster.capacity()
    return str(raised.value)


def looks(cluster: LocalCluster, clock: Clock, seconds: float, problem: Callable[[LocalCluster], object]) -> None:
    """Look every half second for so long."""
    for _ in range(int(seconds * 2)):
        problem(cluster)
        clock.now += 0.5


def test_a_ray_that_does_not_start_is_tried_ever_more_rarely(
    cluster: LocalCluster, clock: Clock, ray: FakeRay, tmp_path: Path
) -> None:
    ray.does("print('no room')")
    looks(cluster, clock, 10, problem_of)
    assert ray.starts == 4, "at once, after 1, 2 and 4 s"
    problem = problem_of(cluster)
    assert "Ray did not start on this machine: no room (see " in problem
    assert problem.endswith("it is started again after 8 s, or by `raygen up`")
    looks(cluster, clock, 3600, problem_of)
    assert ray.starts == 20, "ten times in the first 511 s, then every 300 s"
    ray.does(ANSWERS)
    Standing(tmp_path / "state").begin(CAPACITY)
    assert cluster.capacity() == CAPACITY, "`raygen up` waits for nothing"


def test_a_ray_that_dies_soon_is_started_ever_more_rarely_and_one_that_works_at_once(
    cluster: LocalCluster, clock: Clock, ray: FakeRay, head: Head
) -> None:
    def look(cluster: LocalCluster) -> None:
        if clock.now < 1000 + 2**ray.starts - 1:
            assert "Ray ended on this machine soon after it was started" in problem_of(cluster)
        else:
            cluster.capacity()
        head.stop()

    ray.does(ANSWERS)
    looks(cluster, clock, 8, look)
    assert ray.starts == 4, "at once, after 1, 2 and 4 s"
    clock.now += 8
    cluster.capacity()
    clock.now += 31
    cluster.capacity()
    head.stop()
    cluster.capacity()
    assert ray.starts == 6


def test_devices_are_read_again_for_each_head(
    cluster: LocalCluster, clock: Clock, ray: FakeRay, head: Head, tmp_path: Path
) -> None:
    ray.does(ANSWERS)
    cluster.capacity()
    head.stop()
    Standing(tmp_path / "state").begin(Capacity.of_machine(gpus=0, cpus=1, where="here"))
    cluster.capacity()
    assert head.capacity is not None
    assert head.capacity.cpus == 1


def test_nothing_that_cannot_be_read_now_raises_out_of_a_look(
    cluster: LocalCluster, ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.does(ANSWERS)
    file = tmp_path / "state" / "head.json"
    file.mkdir()
    assert problem_of(cluster) == f"cannot read {file}: Is a directory"
    file.rmdir()

    def stale(path: Path, **options: Any) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    for read in ("read_bytes", "stat"):
        with monkeypatch.context() as away:
            away.setattr(Path, read, stale)
            assert "Stale file handle" in problem_of(cluster)
    assert ray.starts == 0, "a head may run of which nothing can be read"
    assert cluster.capacity() == CAPACITY


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'{"gpus": 0}', b'{"gpus": -1, "cpus": 1}', b"\xff"])
def test_damaged_wishes_are_told_and_start_nothing(
    cluster: LocalCluster, ray: FakeRay, tmp_path: Path, content: bytes
) -> None:
    ray.does(ANSWERS)
    (tmp_path / "state" / "up.json").write_bytes(content)
    standing = Standing(tmp_path / "state")
    assert standing.holds()
    assert "up.json which devices Ray is to have here; type `raygen up` again" in problem_of(cluster)
    assert ray.starts == 0
    standing.begin(CAPACITY)
    assert cluster.capacity() == CAPACITY
