import gzip
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raygen.data import DataOptions, catalog, load

Refusal = Callable[..., str]


@pytest.fixture(autouse=True)
def nothing_installed_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(catalog, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_idx(path: Path, count: int = 20, magic: int = 2051) -> None:
    """Write random 28x28 images in MNIST's format, compressed if the name says so."""
    pixels = np.random.RandomState(0).bytes(count * 28 * 28)
    content = struct.pack(">IIII", magic, count, 28, 28) + pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("place", ["root", "cache/datasets", "system"])
@pytest.mark.parametrize("name", ["mnist/train-images-idx3-ubyte.gz", "MNIST/raw/train-images-idx3-ubyte"])
def test_mnist_is_found_in_each_place(tmp_path: Path, place: str, name: str) -> None:
    write_idx(tmp_path / place / name)
    dataset = load(DataOptions(source="mnist", root=tmp_path / "root"))
    assert dataset.shape == (1, 28, 28)
    assert (len(dataset.train), len(dataset.held_out)) == (18, 2)


def test_the_root_comes_first(tmp_path: Path) -> None:
    write_idx(tmp_path / "root/FashionMNIST/raw/train-images-idx3-ubyte.gz", count=10)
    write_idx(tmp_path / "system/fashion-mnist/train-images-idx3-ubyte.gz", count=20)
    assert len(load(DataOptions(source="fashion-mnist", root=tmp_path / "root")).train) == 9


def test_values_of_an_idx_file(tmp_path: Path) -> None:
    write_idx(tmp_path / "system/mnist/train-images-idx3-ubyte")
    dataset = load(DataOptions(source="mnist"))
    images = torch.cat([dataset.train, dataset.held_out]).flatten(1).numpy()
    expected = np.frombuffer(np.random.RandomState(0).bytes(20 * 784), dtype=np.uint8).reshape(20, 784)
    assert sorted(images.tolist()) == sorted(expected.tolist())


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
    labels = struct.pack(">II", 2049, 20) + bytes(range(20))
    path = tmp_path / f"root/mnist/train-labels-idx1-ubyte{suffix}"
    path.write_bytes(gzip.compress(labels[:-1]) if suffix else labels[:-1])
    assert str(path) in refusal("mnist", root=tmp_path / "root")
    path.write_bytes(gzip.compress(labels) if suffix else labels)
    dataset = load(DataOptions(source="mnist", root=tmp_path / "root"))
    pixels = np.frombuffer(np.random.RandomState(0).bytes(20 * 784), dtype=np.uint8).reshape(20, 784)
    assert dataset.train_labels is not None
    assert torch.equal(dataset.train.flatten(1), torch.from_numpy(pixels.copy())[dataset.train_labels])


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
    assert len(dataset.train) + len(dataset.held_out) == 10  # the test part is left alone
    assert (tmp_path / "root/MNIST/raw/train-images-idx3-ubyte").exists()
    assert capsys.readouterr().out == ""  # stdout is for data


def test_cifar10(tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    folder = tmp_path / "root/cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.repeat(np.arange(12, dtype=np.uint8), 1024).reshape(4, 3072)  # one value per image and channel
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [4, 5, 6, 7]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat"]}))
    message = refusal("cifar10", root=tmp_path / "root")  # not the MD5 sums of CIFAR-10
    assert str(folder) in message

    cifar10 = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar10, "train_list", [("data_batch_1", None)])
    monkeypatch.setattr(cifar10, "test_list", [("test_batch", None)])
    monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": None})
    dataset = load(DataOptions(source="cifar10", root=tmp_path / "root"))
    assert dataset.shape == (3, 32, 32)
    images = torch.cat([dataset.train, dataset.held_out])
    assert sorted(images[:, :, 5, 9].tolist()) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert dataset.train_labels is not None
    assert torch.equal(dataset.train_labels, 4 + dataset.train[:, 0, 5, 9] // 3)


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

    monkeypatch.setattr(catalog, "CELEBA_TRAINING_IMAGES", 4)
    dataset = load(DataOptions(source="celeba", root=tmp_path / "root"))
    assert dataset.shape == (3, 64, 64)
    assert len(dataset.train) + len(dataset.held_out) == 4
    assert dataset.train[..., 1:-1, :].min() > 190
    assert load(DataOptions(source="celeba", root=tmp_path / "root", image_size=32)).shape == (3, 32, 32)


def test_fashion_mnist_of_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    system_folder = Path("/usr/share/datasets")
    if not (system_folder / "fashion-mnist").is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(catalog, "SYSTEM_FOLDER", system_folder)
    dataset = load(DataOptions(source="fashion-mnist"))
    assert dataset.shape == (1, 28, 28)
    assert (len(dataset.train), len(dataset.held_out)) == (54_000, 6_000)
    assert dataset.train_labels is not None
    assert dataset.held_out_labels is not None
    assert torch.cat([dataset.train_labels, dataset.held_out_labels]).bincount().tolist() == [6000] * 10
    pixels = (dataset.train.sum() + dataset.held_out.sum()).item()
    assert pixels / (60_000 * 784) == pytest.approx(72.94, abs=0.01)  # the known mean, 0.2860 x 255
