"""Which of torch's settings say what float32 means, within a judgement and after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from raygen import numerics


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The settings that other tests began with are theirs again."""
    cudnn = torch.backends.cudnn
    precision, convolutions = settings()
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    yield
    torch.set_float32_matmul_precision(precision)
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = convolutions, benchmark, deterministic


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_float32_is_exact_within_and_as_before_afterwards(precision: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions
    with numerics.exact():
        assert settings() == ("highest", False)
        assert not torch.backends.cuda.matmul.allow_tf32
        with numerics.exact():
            assert settings() == ("highest", False)
        assert settings() == ("highest", False)
    assert settings() == (precision, convolutions)


def test_an_error_within_leaves_them_as_they_were() -> None:
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError), numerics.exact():
        raise ZeroDivisionError
    assert settings()[0] == "high"


def test_the_newer_settings_of_torch_do_not_stand_in_its_way() -> None:
    """Set one by one they make torch's older getters raise; afterwards those read what is set."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with pytest.raises(RuntimeError):
        settings()
    with numerics.exact():
        assert settings() == ("highest", False)
    assert settings() == ("high", True)


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("cudnn_benchmark", [True, False])
def test_a_training_sets_what_it_is_asked_to(tf32: bool, cudnn_benchmark: bool) -> None:
    numerics.training(tf32=tf32, cudnn_benchmark=cudnn_benchmark)
    assert settings() == ("high" if tf32 else "highest", tf32)
    cudnn = torch.backends.cudnn
    assert (cudnn.benchmark, cudnn.deterministic) == (cudnn_benchmark, not cudnn_benchmark)
