"""Images that go through a storage: put once, fetched once a node, the same as if they had been decoded there."""

from __future__ import annotations

import errno
import gzip
import multiprocessing
import os
import resource
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raygen import data
from raygen.data import DataOptions, Dataset, InStorage, StoredData, cache, load, stored, travels, upload
from raygen.errors import DamagedFilesWarning, DataError, MachineStorageError, StorageError
from raygen.storage import Storage
from tests.storage import servers


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    with servers.moto() as address:
        yield address


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A storage of each kind, never used before."""
    if request.param == "folder":
        return Storage(tmp_path / "storage")
    for name, value in servers.S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    endpoint = request.getfixturevalue("server")
    return Storage(f"s3://{servers.BUCKET}/{secrets.token_hex(4)}?endpoint={endpoint}")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PART_BYTES", 1000)


class Counted:
    """Hears of progress."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        self.told.append((done_bytes, total_bytes))

    @property
    def bytes(self) -> int:
        return self.told[-1][0] if self.told else 0


def folder_of_pictures(folder: Path) -> DataOptions:
    """Two classes of pictures of two sizes, 60 in all, two of which are damaged."""
    random = np.random.RandomState(0)
    for number in range(60):
        place = folder / "photos" / ("cats" if number % 3 else "dogs") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        side = 16 + 4 * (number % 2)
        Image.fromarray(random.randint(256, size=(side, side, 3)).astype(np.uint8)).save(place)
    for number in (7, 12):
        [found] = (folder / "photos").rglob(f"{number}.png")
        found.write_bytes(found.read_bytes()[:100])
    return DataOptions(source=str(folder / "photos"), image_size=16)


def array(folder: Path) -> DataOptions:
    np.save(folder / "noise.npy", np.random.RandomState(1).randint(256, size=(50, 3, 16, 16)).astype(np.uint8))
    return DataOptions(source=str(folder / "noise.npy"), test_fraction=0)


def labelled_array(folder: Path) -> DataOptions:
    pixels = np.random.RandomState(2).randint(256, size=(50, 16, 16)).astype(np.uint8)
    np.savez(folder / "mine.npz", images=pixels, labels=np.arange(50) % 7)
    return DataOptions(source=str(folder / "mine.npz"), normal_class=3)


def named_set(folder: Path) -> DataOptions:
    """MNIST's files with few images in them, official test part included, in a folder that a person names."""
    raw = folder / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 9)):
        pixels = np.random.RandomState(count).randint(256, size=(count, 28, 28)).astype(np.uint8)
        header = np.array([2051, count, 28, 28], dtype=">u4").tobytes()
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([2049, count], dtype=">u4").tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return DataOptions(source="mnist", root=folder / "root")


def on_another_machine(options: DataOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "b") -> None:
    """Let there be an empty cache, and no source."""
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / f"cache-{name}"))
    source = options.root or Path(options.source)
    if source.exists():
        shutil.move(source, tmp_path / "moved")


def assert_same(one: Dataset, other: Dataset) -> None:
    assert (one.name, one.digest, one.has_official_test, one.no_test, one.damaged) == (
        other.name,
        other.digest,
        other.has_official_test,
        other.no_test,
        other.damaged,
    )
    parts = [(dataset.train, dataset.validation, dataset.test) for dataset in (one, other)]
    for ours, theirs in zip(*parts, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert torch.equal(ours.images, theirs.images)
            assert (ours.labels is None) == (theirs.labels is None)
            assert ours.labels is None or torch.equal(ours.labels, theirs.labels)  # type: ignore[arg-type]
    assert (one.names is None) == (other.names is None)
    if one.names is not None and other.names is not None:
        everything = range(one.names.count())
        assert one.names.at(everything) == other.names.at(everything)


Make = Callable[[Path], DataOptions]


@pytest.mark.filterwarnings("ignore::raygen.errors.DamagedFilesWarning")
@pytest.mark.parametrize("make", [folder_of_pictures, array, labelled_array, named_set])
@pytest.mark.usefixtures("small_parts")
def test_what_is_fetched_is_what_was_decoded(
    make: Make, place: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make(tmp_path)
    here = load(options)
    sent, fetched = Counted(), Counted()
    record = upload(place, options, on_progress=sent)
    again = Counted()
    assert upload(place, options, on_progress=again) == record
    assert sent.bytes > 0
    assert again.told == []

    on_another_machine(options, monkeypatch, tmp_path)
    record = StoredData.model_validate_json(record.model_dump_json())
    there = load(options, InStorage(place, record, fetched))
    assert_same(here, there)
    assert torch.equal(data.source_positions(here), data.source_positions(there)) or options.normal_class is not None
    assert {total for _, total in fetched.told} == {total for _, total in sent.told}
    for told in (sent.told, fetched.told):
        assert all((total, total) in told for _, total in told)
    once_more = Counted()
    assert_same(here, load(options, InStorage(place, record, once_more)))
    assert once_more.told == []


def test_damaged_files_are_told_of_where_they_never_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, place = folder_of_pictures(tmp_path), Storage(tmp_path / "storage")
    record = upload(place, options)
    on_another_machine(options, monkeypatch, tmp_path)
    with pytest.warns(DamagedFilesWarning, match=r"2 of 60 images in .*photos cannot be decoded"):
        load(options, InStorage(place, record))


@pytest.mark.usefixtures("small_parts")
def test_the_same_pictures_elsewhere_are_not_put_again(tmp_path: Path) -> None:
    options, place = array(tmp_path), Storage(tmp_path / "storage")
    first = upload(place, options)
    shutil.copy(options.source, tmp_path / "copy.npy")
    sent = Counted()
    second = upload(place, options.model_copy(update={"source": str(tmp_path / "copy.npy")}), on_progress=sent)
    assert sent.told == []
    assert (first.images, first.name, second.name) == (second.images, "noise", "copy")


def test_the_digest_is_of_all_that_is_known(tmp_path: Path) -> None:
    pixels, place = np.random.RandomState(0).randint(256, size=(20, 8, 8)).astype(np.uint8), Storage(tmp_path / "s")
    digests = set()
    for name, labels in (("a", np.zeros(20, int)), ("b", np.arange(20) % 2), ("c", None)):
        known = {} if labels is None else {"labels": labels}
        np.savez(tmp_path / f"{name}.npz", images=pixels, **known)  # type: ignore[arg-type]
        digests.add(upload(place, DataOptions(source=str(tmp_path / f"{name}.npz"))).images)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / name / f"{name}-{number:02d}.png")
        digests.add(upload(place, DataOptions(source=str(tmp_path / name))).images)
    (tmp_path / "two" / "damaged.png").write_bytes(b"")
    digests.add(upload(place, DataOptions(source=str(tmp_path / "two"))).images)
    assert len(digests) == 6


@pytest.mark.usefixtures("small_parts")
def test_an_upload_goes_on_where_it_was_interrupted(place: Storage, tmp_path: Path) -> None:
    options = array(tmp_path)

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        if done_bytes >= 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(place, options, on_progress=interrupt)
    [digest] = place.children(stored.PREFIX)
    begun = place.list(stored.PREFIX)
    assert 20 <= len(begun) < 39
    assert stored.MANIFEST not in {entry.key.rpartition("/")[2] for entry in begun}
    record = StoredData(
        source=options.source, root=None, image_size=None, name="noise", images=digest, test=None, no_test=""
    )
    with pytest.raises(DataError, match=r"manifest.json is not there: submit"):
        load(options, InStorage(place, record))

    sent = Counted()
    assert upload(place, options, on_progress=sent) == record
    assert sent.bytes == 50 * 3 * 16 * 16 - sum(entry.size_bytes for entry in begun)
    there = {entry.key: entry.version for entry in place.list(stored.PREFIX)}
    assert all(there[entry.key] == entry.version for entry in begun)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("content", [None, b"", b"x" * 1000])
def test_a_damaged_part_is_named_and_can_be_put_back(
    content: bytes | None, place: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = array(tmp_path)
    here = load(options)
    record = upload(place, options)
    key = f"{stored.PREFIX}/{record.images}/images/000007"
    place.delete([key])
    if content is not None:
        place.put(key, content)
    with monkeypatch.context() as patch:
        patch.setenv("RAYGEN_CACHE", str(tmp_path / "cache-b"))
        with pytest.raises(DataError) as caught:
            load(options, InStorage(place, record))
        word = "not there" if content is None else "damaged"
        assert str(caught.value).startswith(f"{place.name}/{key} is {word}")
        assert "\n" not in str(caught.value)
        assert left_in_cache() == []

    place.delete([key])
    sent = Counted()
    upload(place, options, on_progress=sent)
    assert sent.told == [(0, 1000), (1000, 1000)]
    on_another_machine(options, monkeypatch, tmp_path)
    assert_same(here, load(options, InStorage(place, record)))


@pytest.mark.parametrize("kind", ["names", "labels", "damaged", "manifest.json"])
def test_damage_of_what_is_known_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, place = folder_of_pictures(tmp_path), Storage(tmp_path / "storage")
    record = upload(place, options)
    on_another_machine(options, monkeypatch, tmp_path)
    [entry] = [each for each in place.list(stored.PREFIX) if f"/{kind}" in each.key]
    place.put(entry.key, (place.get(entry.key) or b"").replace(b"s", b"z").replace(b"\1", b"\2"))
    with pytest.raises(DataError, match=f"{entry.key} is damaged"):
        load(options, InStorage(place, record))
    assert left_in_cache() == []


def test_a_manifest_of_other_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, one, other = Storage(tmp_path / "storage"), array(tmp_path), labelled_array(tmp_path)
    record, wrong = upload(place, one), upload(place, other)
    manifest = place.get(f"{stored.PREFIX}/{wrong.images}/{stored.MANIFEST}")
    assert manifest is not None
    place.put(f"{stored.PREFIX}/{record.images}/{stored.MANIFEST}", manifest)
    on_another_machine(one, monkeypatch, tmp_path)
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        load(one, InStorage(place, record))


def damage_cached_images() -> Path:
    """Let a disk have lost the second half of what was written to it, which no size tells."""
    [path] = [each for each in left_in_cache() if each.name.endswith(".npy") and not each.is_symlink()]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    return path


@pytest.mark.usefixtures("small_parts")
def test_damaged_cached_images_are_not_put_but_decoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, place = array(tmp_path), Storage(tmp_path / "storage")
    load(options)
    damaged = damage_cached_images()
    with pytest.raises(DataError, match=r"were damaged, and are removed: type the same again") as caught:
        upload(place, options)
    assert str(damaged) in str(caught.value)
    assert place.list() == []
    record = upload(place, options)
    here = load(options)
    on_another_machine(options, monkeypatch, tmp_path)
    assert_same(here, load(options, InStorage(place, record)))


@pytest.mark.usefixtures("small_parts")
def test_images_that_were_put_damaged_are_named_and_can_be_put_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, place = array(tmp_path), Storage(tmp_path / "storage")
    load(options)
    damage_cached_images()
    with monkeypatch.context() as patch:
        patch.setattr(cache.Decoded, "check", lambda decoded: None)  # as those of before did not
        record = upload(place, options)
    folder = f"{stored.PREFIX}/{record.images}"
    with monkeypatch.context() as patch:
        patch.setenv("RAYGEN_CACHE", str(tmp_path / "cache-b"))
        with pytest.raises(DataError, match=f"{place.name}/{folder} is damaged: remove it and submit"):
            load(options, InStorage(place, record))
        assert left_in_cache() == []
        here = load(options)
        place.delete_all(folder)
        assert upload(place, options) == record
    on_another_machine(options, monkeypatch, tmp_path, "c")
    assert_same(here, load(options, InStorage(place, record)))


def left_in_cache() -> list[Path]:
    folder = cache.folder() / "decoded"
    return [path for path in folder.iterdir() if path.suffix != ".lock"] if folder.exists() else []


def _fetch(options: DataOptions, folder: Path, record: StoredData, start: Any, results: Any) -> None:
    fetched = Counted()
    start.wait()
    total = load(options, InStorage(Storage(folder), record, fetched)).train.images.sum().item()
    results.put((total, fetched.bytes))


def test_processes_at_the_same_time_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, place = array(tmp_path), tmp_path / "storage"
    whole = load(options).train.images.sum().item()
    record = upload(Storage(place), options)
    on_another_machine(options, monkeypatch, tmp_path)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_fetch, args=(options, place, record, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums, fetched = zip(*(results.get(timeout=60) for _ in processes), strict=True)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sums == (whole, whole)
    assert sorted(fetched) == [0, 50 * 3 * 16 * 16]


def _fetch_until_killed(options: DataOptions, folder: Path, record: StoredData) -> None:
    def kill(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    stored.PART_BYTES = 1000
    load(options, InStorage(Storage(folder), record, kill))


@pytest.mark.usefixtures("small_parts")
def test_a_fetch_that_was_killed_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, place = array(tmp_path), tmp_path / "storage"
    here = load(options)
    record = upload(Storage(place), options)
    on_another_machine(options, monkeypatch, tmp_path)
    killed = multiprocessing.get_context("spawn").Process(target=_fetch_until_killed, args=(options, place, record))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert [path.suffix for path in left_in_cache()] == [".partial"]
    assert_same(here, load(options, InStorage(Storage(place), record)))
    assert sorted(path.suffix for path in left_in_cache()) == [".digest", ".npy"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, place = labelled_array(tmp_path), Storage(tmp_path / "storage")
    record = upload(place, options)
    on_another_machine(options, monkeypatch, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # write() fails half-way, as on a full disk
    try:
        with pytest.raises(MachineStorageError) as caught:
            load(options, InStorage(place, record))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert "set RAYGEN_CACHE to another folder" in str(caught.value)
    assert left_in_cache() == []
    load(options, InStorage(place, record))


def test_the_machine_that_sent_them_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYGEN_CACHE_GB", "0")
    options, place, fetched = labelled_array(tmp_path), Storage(tmp_path / "storage"), Counted()
    here = load(options)
    there = InStorage(place, upload(place, options), fetched)
    Path(options.source).rename(tmp_path / "moved.npz")
    assert_same(here, load(options, there))
    assert fetched.told == []
    sums = [here.train.images.sum(), here.validation.images.sum()]
    del here
    load(array(tmp_path))  # makes it leave the cache
    again = load(options, there)
    assert fetched.bytes > 0
    assert [again.train.images.sum(), again.validation.images.sum()] == sums
    assert again.train.labels is not None


def test_another_source_than_the_run_s_is_read_here(tmp_path: Path) -> None:
    one, other, place = array(tmp_path), labelled_array(tmp_path), Storage(tmp_path / "storage")
    there = InStorage(place, upload(place, one))
    place.delete_all(stored.PREFIX)
    assert load(other, there).name == "mine"
    assert load(one.model_copy(update={"image_size": 8}), there).shape == (3, 8, 8)


def test_a_storage_that_is_away(tmp_path: Path) -> None:
    options = array(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        upload(Storage(tmp_path / "file" / "storage"), options)


def test_what_travels() -> None:
    folder, named = DataOptions(source="/photos"), DataOptions(source="mnist")
    in_a_folder = DataOptions(source="mnist", root=Path("/sets"))
    there = "http://cluster:8265"
    assert [travels(each, there) for each in (folder, named, in_a_folder)] == [True, False, True]
    assert not any(travels(each, None) for each in (folder, named, in_a_folder))
