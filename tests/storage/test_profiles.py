"""Profiles of AWS: their credentials are used, renewed, and missed in one line."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from raygen.errors import StorageError
from raygen.storage import Storage
from tests.storage import servers

PROCESS = """
import datetime, json, pathlib, sys
calls = pathlib.Path(sys.argv[1])
number = len(calls.read_text()) + 1 if calls.exists() else 1
calls.write_text("x" * number)
expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=int(sys.argv[2]))
print(json.dumps({"Version": 1, "AccessKeyId": f"key{number}", "SecretAccessKey": "a-hidden-word",
    "SessionToken": "token", "Expiration": expiry.isoformat()}))
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Choose a profile of this text."""

    def choose(text: str) -> None:
        (tmp_path / "config").write_text(f"[profile mine]\n{text}\n")
        for name in servers.S3_ENVIRONMENT:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "nothing"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_PROFILE", "mine")

    return choose


def signers(gets: int, *, pause_s: float = 0) -> list[str]:
    """The keys, and their regions, that so many requests are signed with."""
    seen: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        key, _, region = request.headers["Authorization"].partition("Credential=")[2].split("/")[:3]
        seen.append(f"{key} {region}")
        return 200, b"content"

    with servers.answering(answer) as address:
        storage = Storage(f"s3://bucket/runs?endpoint={address}")
        for _ in range(gets):
            assert storage.get("a") == b"content"
            time.sleep(pause_s)
    return seen


def test_a_profile_signs_requests(profile: Callable[[str], None]) -> None:
    profile("aws_access_key_id = mykey\naws_secret_access_key = a-hidden-word\nregion = eu-south-1")
    assert signers(2) == ["mykey eu-south-1"] * 2


def test_keys_in_the_environment_come_first(profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    profile("aws_access_key_id = mykey\naws_secret_access_key = a-hidden-word")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    assert signers(1) == ["other us-east-1"]


@pytest.mark.parametrize(("lives_s", "keys"), [(3_600, 1), (30, 3)])
def test_credentials_are_renewed_before_they_expire(
    profile: Callable[[str], None], tmp_path: Path, lives_s: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    command = [sys.executable, str(tmp_path / "process.py"), str(tmp_path / "calls"), str(lives_s)]
    profile(f"credential_process = {' '.join(command)}\nregion = eu-south-1")
    # obstore asks again when less than five minutes are left of what it was told, and botocore then decides.
    monkeypatch.setattr("raygen.storage.bucket.PROFILE_TTL", timedelta(minutes=4))
    assert len(set(signers(3, pause_s=0.2))) == keys


def test_a_profile_that_is_not_there(profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    profile("")
    told = "AWS_PROFILE names no profile with credentials on this machine"
    with pytest.raises(StorageError, match=told):
        Storage("s3://bucket").get("a")
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StorageError, match=rf"{told} \(The config profile \(other\) could not be found\)"):
        Storage("s3://bucket").get("a")


def test_what_cannot_be_renewed(profile: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text("import sys; sys.exit('sign in again')")
    profile(f"credential_process = {sys.executable} {tmp_path / 'fail.py'}\nregion = eu-south-1")
    with pytest.raises(StorageError, match="sign in again") as caught:
        Storage("s3://bucket").get("a")
    assert str(caught.value).isprintable()


def test_a_profile_without_boto3(profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    profile("")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"^AWS_PROFILE needs boto3; type: pip install 'raygen\[aws\]'$"):
        Storage("s3://bucket").get("a")
