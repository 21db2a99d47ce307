"""A storage that is away, closed, full or of the wrong kind says so in one line, within bounded time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests

from raygen.errors import InputError, StorageError
from raygen.storage import Storage, bucket
from tests.storage import servers
from tests.storage.proxy import Proxy

ACTS: dict[str, Callable[[Storage], object]] = {
    "create": lambda storage: storage.create("a/b", b"1"),
    "put": lambda storage: storage.put("a/b", b"1"),
    "get": lambda storage: storage.get("a/b"),
    "get from": lambda storage: storage.get("a/b", start=3),
    "entry": lambda storage: storage.entry("a/b"),
    "list": lambda storage: storage.list("a"),
    "children": lambda storage: storage.children(),
    "delete": lambda storage: storage.delete(["a/b"]),
    "delete all": lambda storage: storage.delete_all("a"),
    "probe": lambda storage: storage.probe(),
}


def trouble(act: Callable[[], object]) -> str:
    """The one line that an act ends with."""
    with pytest.raises(StorageError) as caught:
        act()
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 300
    for hidden in (
        servers.S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        "an-id",
        servers.AZURE_KEY,
        "<",
        "RequestId",
        "ms,",
    ):
        assert hidden not in line
    assert caught.value.__suppress_context__, "a traceback would show what obstore says"
    return line


@pytest.mark.parametrize("act", ACTS.values(), ids=list(ACTS))
@pytest.mark.parametrize("kind", ["s3", "az"])
def test_a_bucket_that_is_not_there(
    act: Callable[[Storage], object], kind: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue({"s3": "moto", "az": "azurite"}[kind])
    line = trouble(lambda: act(Storage(f"{kind}://nowhere/runs?endpoint={address}")))
    assert f"{kind}://nowhere/runs" in line
    assert f"there is no {'bucket' if kind == 's3' else 'container'} nowhere; make it or name another storage" in line


@pytest.mark.parametrize("act", ACTS.values(), ids=list(ACTS))
def test_a_server_that_does_not_listen(act: Callable[[Storage], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "RETRIES", 1)
    address = f"http://127.0.0.1:{servers.free_port()}"
    line = trouble(lambda: act(Storage(f"s3://bucket/runs?endpoint={address}")))
    assert line.endswith(f"{address} does not answer (Connection refused); is it started, and its address right?")


def test_retries_end_soon() -> None:
    began_s = time.monotonic()
    trouble(lambda: Storage(f"s3://bucket/runs?endpoint=http://127.0.0.1:{servers.free_port()}").get("a"))
    assert time.monotonic() - began_s < bucket.RETRIES * bucket.LONGEST_PAUSE_S + 1


def test_a_server_with_another_protocol(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "RETRIES", 0)
    address = moto.replace("http", "https")
    assert "does not speak https" in trouble(lambda: Storage(f"s3://bucket?endpoint={address}").get("a"))


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "RETRIES", 0)
    line = trouble(lambda: Storage("s3://bucket?endpoint=http://nowhere.invalid").get("a"))
    assert "its name is not known" in line


@pytest.mark.parametrize("act", ["put", "get", "list", "delete"])
def test_a_server_that_stops_answering(act: str, moto: str, s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "STALL_TIMEOUT_S", 1)
    monkeypatch.setattr(bucket, "RETRIES_TIMEOUT_S", 0)
    with Proxy(moto).running() as proxy:
        storage = Storage(s3.url.replace(moto, proxy.address))
        storage.put("a/b", b"1")
        began_s = time.monotonic()
        with proxy.cut("stalled"):
            line = trouble(lambda: ACTS[act](storage))
        assert time.monotonic() - began_s < 10
        assert "has stopped answering; try again" in line
        with proxy.cut("refusing"):
            line = trouble(lambda: ACTS[act](storage))
        assert proxy.address in line
        storage.put("a/b", b"2")  # as soon as it is back, with the same client
    assert s3.get("a/b") == b"2"


def test_a_short_absence_goes_unnoticed(moto: str, s3: Storage) -> None:
    with Proxy(moto).running() as proxy:
        storage = Storage(s3.url.replace(moto, proxy.address))
        storage.put("a", b"1")
        with proxy.cut("refusing"):
            waiting = subprocess.Popen([sys.executable, "-c", READ, storage.url, "a"], stdout=subprocess.PIPE)
            while not proxy.refused:
                time.sleep(0.02)
        answer, _ = waiting.communicate(timeout=60)
    assert answer == b"1"


READ = "import sys; from raygen.storage import Storage; print(Storage(sys.argv[1]).get(sys.argv[2]).decode(), end='')"


def test_a_slow_line_is_not_cut_while_it_brings_something(
    moto: str, s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "STALL_TIMEOUT_S", 1)
    content = bytes(2 * 1024**2)
    s3.put("a", content)
    with Proxy(moto, pause_s=0.08).running() as proxy:
        began_s = time.monotonic()
        assert Storage(s3.url.replace(moto, proxy.address)).get("a") == content
        assert time.monotonic() - began_s > 2
        assert proxy.requests == {"GET": 1}


def test_requests_are_counted_and_late(moto: str, s3: Storage) -> None:
    with Proxy(moto, latency_s=0.1).running() as proxy:
        storage = Storage(s3.url.replace(moto, proxy.address))
        began_s = time.monotonic()
        assert storage.create("a", b"1")
        assert storage.get("a") == b"1"
        assert storage.get("a", start=1) == b""
        assert [entry.key for entry in storage.list()] == ["a"]
        assert time.monotonic() - began_s >= 0.5
        assert proxy.requests == {"PUT": 1, "GET": 3, "HEAD": 1}


@pytest.fixture
def guarded(moto: str) -> Iterator[str]:
    """A server that knows nobody's keys."""
    requests.post(f"{moto}/moto-api/reset-auth", data=b"0", timeout=30)
    yield moto
    requests.post(f"{moto}/moto-api/reset-auth", data=b"1000000000", timeout=30)


@pytest.mark.parametrize("act", ACTS.values(), ids=list(ACTS))
def test_wrong_credentials(act: Callable[[Storage], object], guarded: str) -> None:
    line = trouble(lambda: act(Storage(f"s3://{servers.BUCKET}/runs?endpoint={guarded}")))
    assert "access denied (" in line
    assert "check this machine's credentials" in line


def test_no_credentials(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*servers.S3_ENVIRONMENT, *servers.AZURE_ENVIRONMENT):
        monkeypatch.delenv(name)
    nobody = f"http://127.0.0.1:{servers.free_port()}"
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", nobody)  # where a machine of a cloud is asked for its role
    monkeypatch.setenv("AZURE_MSI_ENDPOINT", nobody)
    line = trouble(lambda: Storage(f"s3://bucket?endpoint={moto}").get("a"))
    assert "this machine has no credentials for it; set AWS_ACCESS_KEY_ID and" in line
    assert "set AZURE_STORAGE_ACCOUNT_NAME" in trouble(lambda: Storage("az://container").get("a"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert "set AZURE_STORAGE_ACCOUNT_NAME" in trouble(lambda: Storage(f"az://container?endpoint={moto}").get("a"))


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (500, b"", "answers 500 Internal Server Error"),
        (503, b"<Error><Code>SlowDown</Code><RequestId>7</RequestId></Error>", "answers SlowDown"),
        (403, b"<Error><Code>AccessDenied</Code><RequestId>7</RequestId></Error>", "access denied (AccessDenied)"),
        (501, b"<Error><Code>NotImplemented</Code></Error>", "need a server that honours If-None-Match"),
        (301, b"<Error><Code>PermanentRedirect</Code></Error>", "in another region; add ?region="),
        (400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>", "in another region; add ?region="),
        (418, b"\n\n<html>", "answers 418"),
    ],
)
def test_what_a_server_refuses(status: int, body: bytes, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "RETRIES", 1)
    with servers.answering(lambda _: (status, body)) as address:
        assert told in trouble(lambda: Storage(f"s3://bucket?endpoint={address}").create("a", b""))


def test_a_server_that_overwrites_is_refused() -> None:
    contents: dict[str, bytes] = {}

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        path, _, query = request.path.partition("?")
        if request.command == "PUT":
            contents[path] = request.rfile.read(int(request.headers["Content-Length"]))
        if request.command == "POST":
            request.rfile.read(int(request.headers["Content-Length"]))
            contents.clear()
        if "list-type" in query:
            return 200, b"<ListBucketResult></ListBucketResult>"
        deleted = b"<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>"
        return 200, deleted if request.command == "POST" else contents.get(path, b"")

    with servers.answering(answer) as address, pytest.raises(StorageError) as caught:
        Storage(f"s3://bucket/runs?endpoint={address}").probe()
    line = str(caught.value)
    assert line.startswith("s3://bucket/runs overwrites what is there")
    assert line.endswith("use a server that honours If-None-Match")
    assert contents == {}


def test_an_endpoint_in_the_environment(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    assert Storage(f"s3://{servers.BUCKET}/env").create("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:a-hidden-word@127.0.0.1:99999")
    with pytest.raises(InputError, match=r"^AWS_ENDPOINT_URL is not the address of a server") as caught:
        Storage(f"s3://{servers.BUCKET}/env").get("a")
    assert "hidden" not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "raygen-test", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_folder(small_disk: Path) -> None:
    storage = Storage(small_disk / "runs")
    storage.put("a", b"1")
    line = trouble(lambda: storage.put("a", bytes(200_000)))
    assert line == (
        f"cannot write {small_disk}/runs/a: No space left on device; free some space there or name another storage "
        "(--storage, RAYGEN_STORAGE)"
    )
    assert storage.get("a") == b"1"
    assert 0 < (storage.room_bytes() or 0) < 65_536
    assert [path.name for path in (small_disk / "runs").iterdir()] == ["a"]
    storage.delete(["a"])


def test_a_read_only_folder(small_disk: Path) -> None:
    storage = Storage(small_disk / "runs")
    storage.put("a/b", b"1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert storage.get("a/b") == b"1"
    for act in ("create", "put", "probe"):
        assert "Read-only file system; name another storage" in trouble(lambda act=act: ACTS[act](storage))
    assert "Read-only" in trouble(lambda: storage.delete(["a/b"]))


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/runs"):
        line = trouble(lambda folder=folder: Storage(folder).put("a/b", b""))
        assert line.startswith(f"cannot write {folder}/a/b: ")
        assert Storage(folder).list() == []


FORK = textwrap.dedent(
    """
    import os, signal, sys
    from raygen.errors import StorageError
    from raygen.storage import Storage

    storage, is_used = Storage(sys.argv[1]), sys.argv[2] == "used"
    if is_used:
        storage.put("parent", b"1")
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs is ended
        try:
            storage.put("child", b"1")
        except StorageError as error:
            print(error, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    storage.put("parent", b"2")
    print([entry.key for entry in storage.list()])
    """
)


def forked(storage: Storage, use: str) -> str:
    """What a process and its child by fork print about a storage."""
    command = [sys.executable, "-c", FORK, storage.url, use]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_fork_uses_what_its_parent_has_not_used(place: Storage) -> None:
    assert forked(place, "unused") == "['child', 'parent']\n"


def test_a_fork_of_a_user_is_told_instead_of_hanging(place: Storage) -> None:
    told = forked(place, "used")
    if place.folder is not None:
        assert told == "['child', 'parent']\n"
    else:
        assert told == "this process is a fork of one that uses buckets itself; start it by spawning\n['parent']\n"
