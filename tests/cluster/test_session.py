"""What a head on this machine is started with, and how clusters are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from raygen.cluster import session
from raygen.cluster.head import Head
from raygen.cluster.session import ENVIRONMENT, cluster_name, dashboard_address, passed
from raygen.errors import ResourceError


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PATH",
            "HOME",
            "TMPDIR",
            "XDG_CACHE_HOME",
            "LD_LIBRARY_PATH",
            "PYTHONPATH",
            "CONDA_PREFIX",
            "LANG",
            "LC_ALL",
        ),
        *("http_proxy", "HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
        *("OMP_NUM_THREADS", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "NCCL_DEBUG", "RAY_BACKEND_LOG_LEVEL"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AZURE_STORAGE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
        *("RAYGEN_CACHE", "RAYGEN_STORAGE"),
    ],
)
def test_what_trainings_need_is_passed(name: str) -> None:
    assert passed({name: "value"}) == {name: "value"}


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "RAYGEN_DB", "GITHUB_TOKEN", "OPENAI_API_KEY", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS"),
        *("DISPLAY", "HISTFILE", "RAY_ADDRESS", "XDG_SESSION_ID", "MY_AWS_KEY", "PROXY_PASSWORD", "PWD"),
    ],
)
def test_what_is_nobody_elses_business_is_not(name: str) -> None:
    assert passed({name: "value"}) == {}


def test_a_head_has_a_token_of_its_own_and_what_ray_needs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "that of another cluster")
    monkeypatch.setenv("EDITOR", "vi")
    head = Head(tmp_path_factory.mktemp("state"))
    environment = head.environment()
    assert environment.items() >= ENVIRONMENT.items()
    assert environment["RAY_AUTH_TOKEN"] == head.token()
    assert "EDITOR" not in environment


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (None, None, "127.0.0.1,localhost,::1"),
        ("intra.net, localhost", None, "intra.net,localhost,127.0.0.1,::1"),
        ("intra.net", ".other", "intra.net,.other,127.0.0.1,localhost,::1"),
        (None, "*", "*"),
    ],
)
def test_no_proxy_stands_between_processes_of_this_machine(
    lower: str | None, upper: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("no_proxy", lower), ("NO_PROXY", upper)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", "http://proxy.intra.net:3128")
    for environment in (session.environment(), Head(tmp_path).environment()):
        assert (environment["no_proxy"], environment["NO_PROXY"]) == (expected, expected)
        assert environment["http_proxy"] == "http://proxy.intra.net:3128"
        monkeypatch.setenv("no_proxy", environment["no_proxy"])
        assert requests.utils.get_environ_proxies("http://127.0.0.1:8265/api/version") == {}
        assert requests.utils.get_environ_proxies("http://elsewhere:8265/") != {} or expected == "*"


SPELLINGS = {
    "http://host:8265": [
        *("http://host:8265/", "http://HOST:8265", "HTTP://Host:8265//", "http://host.:8265", " http://host:8265 "),
        "http://host:08265",
    ],
    "http://127.0.0.1:8265": ["http://localhost:8265", "http://LOCALHOST:8265/", "http://127.0.0.1:8265/"],
    "http://host": ["http://host:80", "http://host:80/", "http://HOST/"],
    "https://host/ray": ["https://host:443/ray", "https://host/ray/"],
    "http://[fd00::1]:8265": ["http://[FD00::1]:8265", "http://[fd00:0:0::0001]:8265/"],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_an_address_is_one_cluster(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for spelling in (name, *SPELLINGS[name]):
        assert cluster_name(dashboard_address(spelling)) == name
        monkeypatch.setenv("RAYGEN_ADDRESS", spelling)
        assert dashboard_address(None) == name


def test_what_differs_is_another_cluster() -> None:
    others = ["http://host:8265", "https://host:8265", "http://host:8266", "http://host:8265/ray", "http://host2:8265"]
    assert len({cluster_name(dashboard_address(other)) for other in others}) == len(others)


@pytest.mark.parametrize(
    "address",
    [
        *("http://me:secret@host:8265", "http://secret@host:8265", "ray://me:secret@host:10001"),
        *("http://host:8265/?token=secret", "http://host:8265#secret", "me:secret@host", "http://[me:secret@host"),
    ],
)
def test_what_gives_access_is_no_part_of_an_address_and_is_not_shown(address: str) -> None:
    with pytest.raises(
        ResourceError, match="must not hold a user, a password or a query; write http://HOST"
    ) as raised:
        dashboard_address(address)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address", ["ray://host:10001", "host:8265", "auto", "http://", "http://:8265", "http://host:port", "http://[host"]
)
def test_what_is_no_dashboard_is_refused(address: str) -> None:
    with pytest.raises(ResourceError, match="is not the address of a Ray dashboard; write http://HOST:8265"):
        dashboard_address(address)
