"""Reading images ends soon after they are not wanted any more, and who comes later finds nothing half written."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from raygen import interruption
from raygen.data import DataOptions, cache, load
from raygen.data.folder import ImageFiles
from raygen.data.stored import InStorage
from raygen.errors import RunInterruptedError
from raygen.progress import silent
from raygen.storage import Storage


def folder_of(path: Path, count: int = 40) -> DataOptions:
    """A folder of images of noise."""
    path.mkdir()
    noise = np.random.RandomState(0).randint(256, size=(count, 16, 16)).astype(np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(path / f"{number:03d}.png")
    return DataOptions(source=str(path))


def load_until_asked(options: DataOptions, looks: int, stored: InStorage | None = None) -> None:
    """Load images that are not wanted from that look on."""
    asked = itertools.count(1)
    with interruption.heeding(lambda: next(asked) >= looks):
        load(options, stored)


@pytest.mark.parametrize("looks", [1, 20, 60, 100, 121])
def test_a_folder_is_left_wherever_a_stop_comes(looks: int, tmp_path: Path) -> None:
    """40 files are looked at for what they are, for their headers and for their pixels."""
    options = folder_of(tmp_path / "images")
    with pytest.raises(RunInterruptedError):
        load_until_asked(options, looks)
    assert not list((cache.folder() / "decoded").glob("*.npy"))
    assert len(load(options).train.images) > 0


def test_no_more_files_are_decoded_than_are_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = folder_of(tmp_path / "images", count=400)
    decode = ImageFiles._decode

    def slowly(self: ImageFiles, name: str) -> object:
        time.sleep(0.1)
        return decode(self, name)

    monkeypatch.setattr(ImageFiles, "_decode", slowly)
    began_at = time.monotonic()
    with pytest.raises(RunInterruptedError), interruption.heeding(lambda: time.monotonic() > began_at + 1):
        load(options)
    assert time.monotonic() - began_at < 3


def test_who_waits_for_another_process_s_decoding_need_not_wait_to_its_end(tmp_path: Path) -> None:
    options = folder_of(tmp_path / "images")
    load(options)
    [decoded] = (cache.folder() / "decoded").glob("*.npy")
    decoded.unlink()
    stop_at = time.monotonic() + 0.5
    with FileLock(f"{decoded}.lock"):
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                with interruption.heeding(lambda: time.monotonic() > stop_at):
                    load(options)
            except RunInterruptedError as error:
                caught.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(5)
        assert not waiting.is_alive()
    assert [str(error) for error in caught] == ["stopped on request"]


def test_images_on_their_way_from_a_storage_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raygen.data import stored, upload

    monkeypatch.setattr(stored, "PART_BYTES", 1000)
    options, storage = folder_of(tmp_path / "images"), Storage(tmp_path / "storage")
    place = InStorage(storage, upload(storage, options), silent)
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "of another node"))
    with pytest.raises(RunInterruptedError):
        load_until_asked(options, 3, place)
    assert not list((cache.folder() / "decoded").glob("*.npy"))
    assert len(load(options, place).train.images) > 0
