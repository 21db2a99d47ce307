"""Which device is found under a name, what it is called, and what is said if its memory is too little."""

from __future__ import annotations

import pytest
import torch

from raygen import device
from raygen.errors import OutOfMemoryError, SpecError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """CUDA finds as many GPUs as the test asks for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_without_a_gpu_it_is_the_cpu() -> None:
    assert device.find("auto") == device.find("cpu") == torch.device("cpu")


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_the_first_gpu_is_found() -> None:
    assert device.find("auto") == device.find("cuda") == device.find("cuda:0") == torch.device("cuda", 0)
    assert device.find("cuda:1") == torch.device("cuda", 1)
    assert device.find("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        (0, "cuda", "CUDA finds no GPU"),
        (0, "cuda:0", "CUDA finds no GPU"),
        (2, "cuda:2", "CUDA finds cuda:0, cuda:1 "),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_is_refused(name: str, expected: str) -> None:
    with pytest.raises(SpecError, match=f"^--device {name}: {expected}.*use --device auto or cpu$"):
        device.find(name)


@pytest.mark.parametrize(
    "name", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cpu:0", "meta", "auto:1"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"^--device {name}: there is no such device; use --device auto, cpu, cuda"):
        device.find(name)


def test_the_cpu_has_a_name() -> None:
    assert device.label(torch.device("cpu")) == "CPU"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_one_line_that_says_what_to_type(error: Exception) -> None:
    expected = "^the GPU cuda:1 has too little free memory for this; use --device cpu$"
    with pytest.raises(OutOfMemoryError, match=expected), device.explained(torch.device("cuda", 1)):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^another$"), device.explained(torch.device("cuda", 1)):
        raise RuntimeError("another")
    with pytest.raises(torch.OutOfMemoryError), device.explained(torch.device("cpu")):
        raise torch.OutOfMemoryError("CUDA out of memory.")
