"""The same storage three times: a folder, a bucket of S3 and a container of Azure."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygen.storage import Storage
from tests.storage import servers


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of an S3 server."""
    with servers.moto() as address:
        yield address


@pytest.fixture(scope="session")
def azurite() -> Iterator[str]:
    """The address of an Azure server."""
    program = servers.install_azurite()
    if program is None:
        pytest.skip("azurite, the server of Azure blobs, is not here and npm cannot install it")
    with servers.azurite(program) as address:
        yield address


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the test servers, and nothing that the person has set."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**servers.S3_ENVIRONMENT, **servers.AZURE_ENVIRONMENT}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(moto: str) -> Storage:
    """A prefix of its own in the bucket."""
    return Storage(f"s3://{servers.BUCKET}/{secrets.token_hex(4)}?endpoint={moto}")


@pytest.fixture
def azure(azurite: str) -> Storage:
    """A prefix of its own in the container."""
    return Storage(f"az://{servers.BUCKET}/{secrets.token_hex(4)}?endpoint={azurite}")


@pytest.fixture(params=["folder", "s3", "azure"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Each kind of storage, never used before."""
    if request.param == "folder":
        return Storage(tmp_path / "runs")
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Storage)
    return made
