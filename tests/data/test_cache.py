import errno
import multiprocessing
import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from PIL import Image

from raygen.data import DataOptions, cache, load
from raygen.data.folder import ImageFiles
from raygen.errors import DamagedFilesError, DamagedFilesWarning, DataError, MachineStorageError

Refusal = Callable[..., str]


def save_noise(path: Path, count: int = 50) -> DataOptions:
    np.save(path, np.random.RandomState(0).randint(256, size=(count, 16, 16)).astype(np.uint8))
    return DataOptions(source=str(path))


def decoded_files() -> list[Path]:
    """Everything in the cache but the locks and digests."""
    return [path for path in (cache.folder() / "decoded").iterdir() if path.suffix not in (".lock", ".digest")]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("RAYGEN_CACHE")
    assert cache.folder() == platformdirs.user_cache_path("raygen")


def test_decoded_once_then_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = save_noise(tmp_path / "noise.npy")
    first = load(options)
    (file,) = decoded_files()
    assert file.name.startswith("noise-native-")

    def refuse(*arguments: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("raygen.data.array.read", refuse)
    assert torch.equal(load(options).train.images, first.train.images)


def test_each_size_and_each_source_has_its_file(tmp_path: Path) -> None:
    options = save_noise(tmp_path / "noise.npy")
    (tmp_path / "other").mkdir()
    for each in (
        options,
        options.model_copy(update={"image_size": 8}),
        save_noise(tmp_path / "other/noise.npy"),
    ):
        load(each)
    assert len(decoded_files()) == 3


@pytest.mark.parametrize("keep_bytes", [0, 5, 60, 128, 1000])
def test_a_truncated_file_is_decoded_again(tmp_path: Path, keep_bytes: int) -> None:
    options = save_noise(tmp_path / "noise.npy")
    whole = load(options).train.images.clone()
    (file,) = decoded_files()
    file.write_bytes(file.read_bytes()[:keep_bytes])
    assert torch.equal(load(options).train.images, whole)


@pytest.mark.parametrize("content", [None, "", "0123", "Z" * 16])
def test_without_its_digest_a_file_is_decoded_again(tmp_path: Path, content: str | None) -> None:
    options = save_noise(tmp_path / "noise.npy")
    digest = load(options).digest
    [file] = (cache.folder() / "decoded").glob("*.digest")
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert load(options).digest == digest


def _load_in_process(options: DataOptions, start: Any, results: Any) -> None:
    """Load when told to, and send how often this process read the source, and the images' sum."""
    from raygen.data import array

    reads = 0
    read = array.read

    def counted(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return read(*arguments)

    array.read = counted
    start.wait()
    total = load(options).train.images.sum().item()
    results.put((total, reads))


def test_processes_at_the_same_time_decode_once(tmp_path: Path) -> None:
    options = save_noise(tmp_path / "noise.npy", count=20_000)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_load_in_process, args=(options, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums, reads = zip(*(results.get(timeout=60) for _ in processes), strict=True)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sum(reads) == 1
    assert sums[0] == sums[1] > 0


def test_what_a_killed_process_left_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = save_noise(tmp_path / "noise.npy")
    with monkeypatch.context() as patch:
        # As if it was killed before the clean-up.
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        patch.setattr(os, "replace", lambda source, target: None)
        with pytest.raises(Exception, match="cannot map"):
            load(options)
    assert {path.suffix for path in decoded_files()} == {".partial"}
    load(options)
    (file,) = decoded_files()
    assert file.suffix == ".npy"


def test_no_room_for_the_file(tmp_path: Path) -> None:
    options = save_noise(tmp_path / "noise.npy", count=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # write() fails half-way, as on a full disk
    try:
        with pytest.raises(MachineStorageError) as caught:
            load(options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert f"{cache.folder() / 'decoded'} on {platform.node()}" in message
    assert "RAYGEN_CACHE" in message
    assert os.strerror(errno.EFBIG) in message
    assert decoded_files() == []
    assert len(load(options).train.images) == 800


def test_a_cache_that_cannot_be_written(tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    options = save_noise(tmp_path / "noise.npy")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "file" / "cache"))
    message = refusal(options.source)
    assert str(tmp_path / "file" / "cache") in message
    assert "RAYGEN_CACHE" in message


def test_large_sources_are_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = save_noise(tmp_path / "noise.npy")
    whole = load(options).train.images.clone()
    (file,) = decoded_files()
    file.unlink()
    monkeypatch.setattr(cache, "CHUNK_BYTES", 1000)
    assert torch.equal(load(options).train.images, whole)


def test_labels_are_cached_beside_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(50, dtype=np.uint8).repeat(64).reshape(50, 8, 8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(50) % 7)
    options = DataOptions(source=str(tmp_path / "mine.npz"))
    first = load(options)
    assert sorted(file.name.partition(".")[2] for file in decoded_files()) == ["labels.npy", "npy"]

    def refuse(*arguments: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("raygen.data.array.read", refuse)
    again = load(options)
    for dataset in (first, again):
        assert dataset.train.labels is not None
        assert dataset.validation.labels is not None
        assert torch.equal(dataset.train.labels, dataset.train.images[:, 0, 0, 0].long() % 7)
        assert torch.equal(dataset.validation.labels, dataset.validation.images[:, 0, 0, 0].long() % 7)


@pytest.mark.parametrize("keep_bytes", [0, 5, 60, 128, 200])
def test_truncated_labels_are_read_again(tmp_path: Path, keep_bytes: int) -> None:
    np.savez(tmp_path / "mine.npz", images=np.zeros((50, 8, 8), dtype=np.uint8), labels=np.arange(50, dtype=np.uint8))
    options = DataOptions(source=str(tmp_path / "mine.npz"))
    whole = load(options).train.labels
    [file] = [file for file in decoded_files() if file.name.endswith(".labels.npy")]
    file.write_bytes(file.read_bytes()[:keep_bytes])
    again = load(options).train.labels
    assert whole is not None
    assert again is not None
    assert torch.equal(again, whole)


def test_images_without_labels_have_none(tmp_path: Path) -> None:
    dataset = load(save_noise(tmp_path / "noise.npy"))
    assert (dataset.train.labels, dataset.validation.labels) == (None, None)


@pytest.mark.parametrize("content", [b"null", b"[]", b"[1]", b'{"a.png": 1}', b"1", b"\xff", b""])
def test_what_is_left_out_is_read_again_if_its_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    for number in range(6):
        Image.new("L", (8, 8), 255).save(tmp_path / f"{number}.png")
    (tmp_path / "damaged.png").write_bytes(b"")
    options = DataOptions(source=str(tmp_path))
    with pytest.warns(DamagedFilesWarning):
        whole = load(options).damaged
    [file] = [file for file in decoded_files() if file.name.endswith(".damaged.json")]
    file.write_bytes(content)
    with pytest.warns(DamagedFilesWarning):
        assert load(options).damaged == whole


@pytest.mark.parametrize("keep_bytes", [0, 5, 29])
def test_truncated_names_are_read_again(tmp_path: Path, keep_bytes: int) -> None:
    for number in range(6):
        Image.new("L", (8, 8), 255).save(tmp_path / f"{number}.png")
    options = DataOptions(source=str(tmp_path))
    load(options)
    [file] = [file for file in decoded_files() if file.suffix == ".names"]
    file.write_bytes(file.read_bytes()[:keep_bytes])
    names = load(options).names
    assert names is not None
    assert names.at([5, 0]) == ["5.png", "0.png"]
    file.unlink()
    with pytest.raises(DataError, match="cannot read the names of images"):
        names.at([0])


def test_a_source_that_has_to_be_whole_is_refused(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("L", (8, 8), 255).save(tmp_path / f"{number}.png")
    for damaged in (2, 4):
        (tmp_path / f"{damaged}.png").write_bytes(b"")
    images = ImageFiles(tmp_path, [f"{number}.png" for number in range(6)], (6, 1, 8, 8), None)
    with pytest.raises(DamagedFilesError, match=r"cannot decode 2 images in .*: 2.png .*, 4.png .*; repair or remove"):
        cache.decode_once("strict", "", lambda damaged: images, leaves_out=False)
    assert decoded_files() == []
