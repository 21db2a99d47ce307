from collections.abc import Callable
from pathlib import Path

import pytest

from raygen.data import DataOptions, load
from raygen.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYGEN_CACHE", str(folder))
    return folder


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Function that loads a source which must be refused, and returns the one line it is refused with."""

    def load_refused(source: Path | str, root: Path | None = None, image_size: int | None = None) -> str:
        with pytest.raises(DataError) as caught:
            load(DataOptions(source=str(source), root=root, image_size=image_size))
        message = str(caught.value)
        assert caught.value.exit_code == 2
        assert message
        assert "\n" not in message
        return message

    return load_refused
