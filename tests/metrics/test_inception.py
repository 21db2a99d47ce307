"""The inception network: that of torch-fidelity, with weights made up here, and never another in its place."""

from __future__ import annotations

import hashlib
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from raygen.errors import DataError
from raygen.metrics import _features, _inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch-fidelity's, with random weights: the real ones need a download."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    empty = path.with_name("empty.pth")
    torch.save({}, empty)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(empty))
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_its_features_are_torch_fidelity_s(weights: Path, shape: tuple[int, int, int]) -> None:
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    network = _inception.load(weights)
    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))
    (expected,) = theirs((images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1))
    found = _features.features(images, network)
    assert found.shape == (3, 2048)
    assert torch.equal(found, expected.double())
    assert network.name == "inception"


def test_a_file_that_is_not_canonical_is_said_to_be_none(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert _inception.load(weights).facts == {"weights": digest[:16], "canonical": False}


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code in a pickle was run",))


@pytest.mark.parametrize(
    "content", [None, b"", b"hello there", pickle.dumps(Harmful(), protocol=2), {}, {"fc.bias": torch.ones(3)}]
)
def test_what_is_no_weights_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DataError) as caught:
        _inception.load(path)
    assert str(path) in str(caught.value)
    assert "--fid-weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_no_other_weights_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"cannot be downloaded from https://.*; name a copy with --fid-weights FILE"):
        _inception.load(None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
