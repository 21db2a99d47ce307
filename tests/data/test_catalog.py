import gzip
import os
import pickle
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raygen.data import DataOptions, Split, catalog, load, source_positions
from raygen.errors import DataError

Refusal = Callable[..., str]


@pytest.fixture(autouse=True)
def nothing_installed_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(catalog, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_idx(path: Path, count: int = 20, magic: int = 2051, seed: int = 0) -> None:
    """Write random 28x28 images in MNIST's format, compressed if the name says so."""
    pixels = np.random.RandomState(seed).bytes(count * 28 * 28)
    write(path, struct.pack(">IIII", magic, count, 28, 28) + pixels)


def write_labels(path: Path, labels: bytes) -> None:
    write(path, struct.pack(">II", 2049, len(labels)) + labels)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def random_pixels(count: int, seed: int = 0) -> torch.Tensor:
    """The images of `write_idx`, [N, 784]."""
    pixels = np.frombuffer(np.random.RandomState(seed).bytes(count * 784), dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(count, 784).copy())


@pytest.mark.parametrize("place", ["root", "cache/datasets", "system"])
@pytest.mark.parametrize("name", ["mnist/train-images-idx3-ubyte.gz", "MNIST/raw/train-images-idx3-ubyte"])
def test_mnist_is_found_in_each_place(tmp_path: Path, place: str, name: str) -> None:
    write_idx(tmp_path / place / name)
    dataset = load(DataOptions(source="mnist", root=tmp_path / "root"))
    assert dataset.shape == (1, 28, 28)
    assert (len(dataset.train.images), len(dataset.validation.images)) == (18, 2)


def test_the_root_comes_first(tmp_path: Path) -> None:
    write_idx(tmp_path / "root/FashionMNIST/raw/train-images-idx3-ubyte.gz", count=10)
    write_idx(tmp_path / "system/fashion-mnist/train-images-idx3-ubyte.gz", count=20)
    assert len(load(DataOptions(source="fashion-mnist", root=tmp_path / "root")).train.images) == 9


def test_values_of_an_idx_file(tmp_path: Path) -> None:
    write_idx(tmp_path / "system/mnist/train-images-idx3-ubyte")
    dataset = load(DataOptions(source="mnist"))
    images = torch.cat([dataset.train.images, dataset.validation.images]).flatten(1)
    assert sorted(images.tolist()) == sorted(random_pixels(20).tolist())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_official_test_part_is_that_of_the_test_files(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "root/MNIST/raw"
    write_idx(folder / f"train-images-idx3-ubyte{suffix}")
    write_idx(folder / f"t10k-images-idx3-ubyte{suffix}", count=7, seed=1)
    write_labels(folder / f"t10k-labels-idx1-ubyte{suffix}", bytes(range(7)))
    dataset = load(DataOptions(source="mnist", root=tmp_path / "root"))
    assert (len(dataset.train.images), len(dataset.validation.images)) == (18, 2)
    test = dataset.part("test")
    assert test.labels is not None
    assert torch.equal(test.images.flatten(1), random_pixels(7, seed=1)[test.labels])
    assert source_positions(dataset)[20:].tolist() == (20 + test.labels).tolist()
    assert sorted(source_positions(dataset).tolist()) == list(range(27))


def test_without_the_test_file_no_other_images_are_tested_on(tmp_path: Path) -> None:
    folder = tmp_path / "root/mnist"
    write_idx(folder / "train-images-idx3-ubyte")
    options = DataOptions(source="mnist", root=tmp_path / "root", test_fraction=0.2)
    before = load(options)
    assert (len(before.train.images), len(before.validation.images), before.test) == (18, 2, None)
    missing = re.escape(f"mnist has no test images: t10k-images-idx3-ubyte or .gz is not in {folder}")
    with pytest.raises(DataError, match=missing):
        before.part("test")
    write_idx(folder / "t10k-images-idx3-ubyte", count=7, seed=1)
    after = load(options)
    assert len(after.part("test").images) == 7
    assert after.digest != before.digest
    assert after.part("test").labels is None


def test_a_normal_class_has_no_test_part_without_labels(tmp_path: Path) -> None:
    folder = tmp_path / "root/mnist"
    write_idx(folder / "train-images-idx3-ubyte", count=40)
    write_labels(folder / "train-labels-idx1-ubyte", bytes([1] * 40))
    write_idx(folder / "t10k-images-idx3-ubyte", count=7)
    ones = load(DataOptions(source="mnist", root=tmp_path / "root", normal_class=1))
    with pytest.raises(DataError, match="its test images have no labels"):
        ones.part("test")


def test_a_test_file_of_another_set_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    folder = tmp_path / "root/mnist"
    write_idx(folder / "train-images-idx3-ubyte")
    write(folder / "t10k-images-idx3-ubyte", struct.pack(">IIII", 2051, 5, 9, 9) + bytes(5 * 81))
    message = refusal("mnist", root=tmp_path / "root")
    assert "the training images are [1, 28, 28], those of the official test part [1, 9, 9]" in message


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"])
def test_another_root_is_another_set_of_images(tmp_path: Path, name: str) -> None:
    """Though its files have the names, sizes and times of those that were decoded before."""
    for seed, root in enumerate(("first", "second")):
        write_idx(tmp_path / root / "mnist/train-images-idx3-ubyte", seed=0)
        write_idx(tmp_path / root / "mnist/t10k-images-idx3-ubyte.gz", count=7, seed=0)
        write_idx(tmp_path / root / "mnist" / name, count=20, seed=seed)
        for path in (tmp_path / root / "mnist").iterdir():
            os.utime(path, ns=(0, 0))
    first, second, again = (
        load(DataOptions(source="mnist", root=tmp_path / root)) for root in ("first", "second", "first")
    )
    part: Split = "train" if name.startswith("train") else "test"
    assert not torch.equal(first.part(part).images, second.part(part).images)
    assert torch.equal(first.part(part).images, again.part(part).images)
    assert first.digest == again.digest != second.digest


def test_a_file_in_the_place_of_another_is_read(tmp_path: Path) -> None:
    path = tmp_path / "root/mnist/train-images-idx3-ubyte"
    digests = []
    for seed in range(2):
        write_idx(path, seed=seed)
        os.utime(path, ns=(0, 0))
        digests.append(load(DataOptions(source="mnist", root=tmp_path / "root")).digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[:8],
        lambda content: b"",
        lambda content: b"\0" * len(content),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_idx_file(tmp_path: Path, refusal: Refusal, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"root/mnist/train-images-idx3-ubyte{suffix}"
    write_idx(path)
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal("mnist", root=tmp_path / "root")


def test_labels_are_not_images(tmp_path: Path, refusal: Refusal) -> None:
    path = tmp_path / "root/mnist/train-images-idx3-ubyte"
    write_idx(path, magic=2049)
    assert str(path) in refusal("mnist", root=tmp_path / "root")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_labels_of_mnist(tmp_path: Path, refusal: Refusal, suffix: str) -> None:
    write_idx(tmp_path / "root/mnist/train-images-idx3-ubyte")
    path = tmp_path / f"root/mnist/train-labels-idx1-ubyte{suffix}"
    content = struct.pack(">II", 2049, 20) + bytes(range(20))
    write(path, content[:-1])
    assert str(path) in refusal("mnist", root=tmp_path / "root")
    write(path, content)
    dataset = load(DataOptions(source="mnist", root=tmp_path / "root"))
    assert dataset.train.labels is not None
    assert torch.equal(dataset.train.images.flatten(1), random_pixels(20)[dataset.train.labels])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "celeba"])
def test_a_failed_download_says_where_it_looked(
    tmp_path: Path, refusal: Refusal, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    message = refusal(name, root=tmp_path / "root")
    for folder in ("root", "cache/datasets", "system"):
        assert str(tmp_path / folder) in message
    assert name in message
    assert "--data-root" in message
    assert capfd.readouterr().out == ""
    assert str(tmp_path / "root") not in refusal(name)


def test_a_download_goes_to_the_root_and_is_read_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision

    def download(self: Any) -> None:
        print("downloading")
        for part, count in (("train", 10), ("t10k", 5)):
            write_idx(Path(self.raw_folder) / f"{part}-images-idx3-ubyte", count)
            labels = Path(self.raw_folder) / f"{part}-labels-idx1-ubyte"
            labels.write_bytes(struct.pack(">II", 2049, count) + bytes(count))

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    dataset = load(DataOptions(source="mnist", root=tmp_path / "root"))
    assert len(dataset.train.images) + len(dataset.validation.images) == 10
    assert len(dataset.part("test").images) == 5
    assert (tmp_path / "root/MNIST/raw/train-images-idx3-ubyte").exists()
    assert capsys.readouterr().out == ""  # stdout is for data


def test_cifar10(tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    folder = tmp_path / "root/cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.repeat(np.arange(24, dtype=np.uint8), 1024).reshape(8, 3072)  # one value per image and channel
    for name, rows in (("data_batch_1", slice(4)), ("test_batch", slice(4, 8))):
        (folder / name).write_bytes(pickle.dumps({"data": pixels[rows], "labels": [4, 5, 6, 7]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat"]}))
    message = refusal("cifar10", root=tmp_path / "root")  # not the MD5 sums of CIFAR-10
    assert str(folder) in message

    cifar10 = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar10, "train_list", [("data_batch_1", None)])
    monkeypatch.setattr(cifar10, "test_list", [("test_batch", None)])
    monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": None})
    dataset = load(DataOptions(source="cifar10", root=tmp_path / "root"))
    assert dataset.shape == (3, 32, 32)
    images = torch.cat([dataset.train.images, dataset.validation.images])
    assert sorted(images[:, :, 5, 9].tolist()) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert dataset.train.labels is not None
    assert torch.equal(dataset.train.labels, 4 + dataset.train.images[:, 0, 5, 9] // 3)
    test = dataset.part("test")
    assert test.labels is not None
    assert sorted(test.images[:, 0, 5, 9].tolist()) == [12, 15, 18, 21]
    assert torch.equal(test.labels, test.images[:, 0, 5, 9] // 3)


def test_celeba(tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root/celeba/img_align_celeba"
    folder.mkdir(parents=True)
    face = np.zeros((218, 178, 3), dtype=np.uint8)
    face[20:198] = 200  # the square in the middle, which is kept
    for index in range(1, 6):
        Image.fromarray(face).save(folder / f"{index:06}.jpg", quality=95)
    message = refusal("celeba", root=tmp_path / "root")
    assert str(folder) in message
    assert "5 of the 162770" in message

    for name, count in (("CELEBA_TRAINING_IMAGES", 4), ("CELEBA_TEST_IMAGES", 2), ("CELEBA_IMAGES", 7)):
        monkeypatch.setattr(catalog, name, count)
    options = DataOptions(source="celeba", root=tmp_path / "root")
    dataset = load(options)
    assert dataset.shape == (3, 64, 64)
    assert len(dataset.train.images) + len(dataset.validation.images) == 4
    assert dataset.train.images[..., 1:-1, :].min() > 190
    assert load(DataOptions(source="celeba", root=tmp_path / "root", image_size=32)).shape == (3, 32, 32)
    with pytest.raises(DataError, match=r"celeba has no test images: .* holds 5 of 7 images"):
        dataset.part("test")

    Image.fromarray(face // 2).save(folder / "000006.jpg", quality=95)
    Image.fromarray(face // 2).save(folder / "000007.jpg", quality=95)
    test = load(options).part("test")
    assert len(test.images) == 2
    assert 90 < test.images[..., 1:-1, :].min() <= test.images.max() < 110
    Image.fromarray(face // 4).save(folder / "000007.jpg", quality=95)
    assert load(options).part("test").images.float().mean(dim=(1, 2, 3)).min() < 60


def test_fashion_mnist_of_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    system_folder = Path("/usr/share/datasets")
    if not (system_folder / "fashion-mnist").is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(catalog, "SYSTEM_FOLDER", system_folder)
    dataset = load(DataOptions(source="fashion-mnist"))
    assert dataset.shape == (1, 28, 28)
    assert (len(dataset.train.images), len(dataset.validation.images)) == (54_000, 6_000)
    assert dataset.train.labels is not None
    assert dataset.validation.labels is not None
    assert torch.cat([dataset.train.labels, dataset.validation.labels]).bincount().tolist() == [6000] * 10
    assert len(dataset.part("test").images) == 10_000
    pixels = (dataset.train.images.sum() + dataset.validation.images.sum()).item()
    assert pixels / (60_000 * 784) == pytest.approx(72.94, abs=0.01)  # the known mean, 0.2860 x 255
