"""Looking closely at really trained small models: pictures, latents and scores, and what is refused."""

from __future__ import annotations

import csv
import os
import re
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner, Result

import raygen
from cli.main import app
from raygen import data, image_files, inspection, latents
from raygen.api.loading import load_images
from raygen.data import Dataset
from raygen.metrics import ssim
from raygen.record.run import Run
from raygen.storage import Storage
from tests.cli.conftest import best_folder

CELL = 34  # 8 pixels, four times enlarged, and a border of one


def run(runner: CliRunner, command: str) -> Result:
    result = runner.invoke(app, command.split())
    assert result.exit_code == 0, result.output
    assert result.stdout == "", "pictures and data go to files, talk to standard error"
    return result


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert len(set(picture.tobytes())) > 10
        return picture.size


def rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def source_pixels() -> np.ndarray[Any, Any]:
    return np.rint(load_digits().images * (255 / 16)).astype(np.uint8)


# Pictures


def test_a_gan_is_sampled_from_its_prior(trained: CliRunner) -> None:
    said = run(trained, "sample gan --n 12 -o grid.png").stderr
    assert size("grid.png") == (4 * CELL, 3 * CELL)
    assert "12 samples of trial 1 (val_frechet" in said


def test_samples_are_data_for_the_next_training(trained: CliRunner, trained_storage: Path, tmp_path: Path) -> None:
    Path("empty").mkdir()
    for output in ("samples.npz", "folder", "empty"):
        assert "1203 samples of trial 1 (val_frechet" in run(trained, f"sample gan --n 1203 -o {output}").stderr
    model = raygen.load("gan", storage=trained_storage)
    drawn = model.sample(1203)
    for output in ("samples.npz", "folder", "empty"):
        read = inspection.select(load_images(model, data=str(tmp_path / output)), "all").images
        assert read.dtype == torch.uint8
        assert torch.equal(read, (255 * drawn).round().to(torch.uint8)), "in the order in which they were drawn"
    with np.load("samples.npz") as found:
        assert found.files == ["images"]
    assert sorted(os.listdir("folder"))[:2] == ["0000.png", "0001.png"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_a_million_samples_would_fit_in_memory(tmp_path: Path) -> None:
    drawn: list[weakref.ref[torch.Tensor]] = []

    def batches() -> Iterator[torch.Tensor]:
        for number in range(20):
            assert sum(batch() is not None for batch in drawn) <= 1, "those before are gone"
            images = torch.full((5, 3, 8, 8), number / 20)
            drawn.append(weakref.ref(images))
            yield images

    image_files.write(tmp_path / "images.npz", batches(), (100, 3, 8, 8))
    image_files.write(tmp_path / "folder", batches(), (100, 3, 8, 8))
    dataset = data.load(data.DataOptions(source=str(tmp_path / "folder")))
    assert dataset.shape == (3, 8, 8)
    with np.load(tmp_path / "images.npz") as found:
        assert (inspection.select(dataset, "all").images.numpy() == found["images"]).all()


def test_an_autoencoder_is_sampled_from_a_mixture(trained: CliRunner) -> None:
    said = run(trained, "sample ae --prior gmm --components 5 --n 9 -o first.png").stderr
    assert "prior: gmm of 5" in said
    assert size("first.png") == (3 * CELL, 3 * CELL)
    run(trained, "sample ae --prior gmm --components 5 --n 9 -o again.png")
    assert Path("first.png").read_bytes() == Path("again.png").read_bytes()
    run(trained, "sample ae --prior gmm --components 5 --n 9 --seed 1 -o other.png")
    assert Path("first.png").read_bytes() != Path("other.png").read_bytes()


@pytest.mark.parametrize("model", ["ae", "vae", "aegan"])
def test_reconstructions_stand_below_their_images(trained: CliRunner, model: str, digits: Dataset) -> None:
    run(trained, f"reconstruct {model} --n 6 --columns 4 -o pairs.png")
    assert size("pairs.png") == (4 * CELL, 4 * CELL)
    with Image.open("pairs.png") as picture:
        pixels = np.asarray(picture).astype(float)
    cells = [pixels[row * CELL + 2 : (row + 1) * CELL : 4, 2 : 4 * CELL] for row in range(4)]
    images = [np.stack([row[:, column * CELL : column * CELL + 32 : 4] for column in range(4)]) for row in cells]
    originals = np.concatenate([images[0], images[2]])
    rebuilt = np.concatenate([images[1], images[3]])
    assert (originals[:6] == digits.validation.images[:6, 0].numpy()).all()
    assert (originals[6:] == 0).all()
    shuffled = np.roll(rebuilt[:6], 1, axis=0)
    assert ((originals[:6] - rebuilt[:6]) ** 2).mean() < 0.7 * ((originals[:6] - shuffled) ** 2).mean()


@pytest.mark.parametrize(("model", "ends"), [("ae", "encodings of validation images"), ("gan", "samples, on great")])
def test_rows_lead_from_one_point_to_another(trained: CliRunner, model: str, ends: str) -> None:
    assert ends in run(trained, f"interpolate {model} --steps 7 --rows 3 -o rows.png").stderr
    assert size("rows.png") == (7 * CELL, 3 * CELL)


# Latents and scores


def test_latents_lie_in_the_order_of_the_source(trained: CliRunner, trained_storage: Path) -> None:
    run(trained, "encode ae -o latents.npz --split all")
    with np.load("latents.npz") as found:
        arrays = dict(found)
    assert arrays["latents"].shape == (1797, 6)
    assert arrays["index"].tolist() == list(range(1797))
    assert arrays["labels"].tolist() == load_digits().target.tolist()
    assert {part: int((arrays["split"] == part).sum()) for part in ("train", "validation", "test")} == {
        "train": 1437,
        "validation": 180,
        "test": 180,
    }
    assert "position index[i] of the source" in str(arrays["order"])
    model: Any = raygen.load("ae", storage=trained_storage).model
    images = torch.from_numpy(source_pixels()[:, None]).float() / 255
    torch.testing.assert_close(torch.from_numpy(arrays["latents"]), model.encode(images), rtol=1e-4, atol=1e-4)
    error = (model.decode(torch.from_numpy(arrays["latents"])) - images).square().mean()
    assert error < 0.5 * images.var(), "what was encoded can be decoded"


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_what_is_encoded_can_be_decoded(trained: CliRunner, model: str, trained_storage: Path, tmp_path: Path) -> None:
    encoded = run(trained, f"encode {model} --split test").stderr
    decoded = run(trained, f"decode {model} latents.npz -o images.npz").stderr
    for said in (encoded, decoded):  # 8 · 8 bytes an image, 6 · 4 of its latents
        assert "11,520 bytes of pixels in 8 bits, 4,320 bytes of latents in float32: compression ratio 2.67" in said
    originals = inspection.select(data.load(data.DataOptions()), "test")
    with np.load("images.npz") as found:
        images, labels = found["images"], found["labels"]
    assert originals.labels is not None
    assert (labels == originals.labels.numpy()).all()
    told = re.search(r"PSNR (\S+) dB, SSIM (\S+), means over 180 of the images", encoded)
    assert told
    errors = ((images / 255 - originals.images.numpy() / 255) ** 2).mean(axis=(1, 2, 3))
    assert float(told[1]) == pytest.approx(-10 * np.log10(errors).mean(), abs=0.02)
    similarity = ssim.similarities(torch.from_numpy(images) / 255, originals.images.float() / 255).mean()
    assert float(told[2]) == pytest.approx(similarity.item(), abs=0.002)
    run(trained, f"decode {model} latents.npz -o folder")
    again = load_images(raygen.load(model, storage=trained_storage), data=str(tmp_path / "folder"))
    assert (inspection.select(again, "all").images.numpy() == images).all()


def test_latents_belong_to_the_model_that_encoded_them(trained: CliRunner) -> None:
    run(trained, "encode ae")
    result = trained.invoke(app, ["decode", "zeros", "latents.npz"])
    assert result.exit_code == 2
    assert "latents.npz was encoded by a model with other weights: name the run or folder" in result.stderr
    with np.load("latents.npz") as found:
        np.savez("mine.npz", latents=found["latents"][:3])
    assert "3 images decoded" in run(trained, "decode zeros mine.npz -o folder").stderr


def test_many_images_are_measured_by_some(trained_storage: Path) -> None:
    model = raygen.load("ae", storage=trained_storage)
    whole = inspection.select(data.load(data.DataOptions()), "all")
    twice = replace(whole, images=whole.images.repeat(2, 1, 1, 1), positions=whole.positions.repeat(2), labels=None)
    twice = replace(twice, parts=whole.parts.repeat(2))
    found, alone = latents.round_trip(model, twice), latents.round_trip(model, whole)
    assert (found.images, alone.images) == (2000, 1797)
    assert found.psnr_db == pytest.approx(alone.psnr_db, rel=0.01)


def test_validation_images_are_what_is_encoded_unless_told_otherwise(trained: CliRunner) -> None:
    run(trained, "encode vae -o validation.npz")
    for split in ("train", "test"):
        run(trained, f"encode vae --split {split} -o {split}.npz")
    together = []
    for split, count in (("train", 1437), ("validation", 180), ("test", 180)):
        with np.load(f"{split}.npz") as found:
            assert len(found["latents"]) == count
            assert set(found["split"]) == {split}
            together += found["index"].tolist()
    assert sorted(together) == list(range(1797))


@pytest.mark.parametrize(("model", "name"), [("ae", "reconstruction_mse"), ("vae", "negative_elbo_nats")])
def test_every_image_gets_its_score(trained: CliRunner, model: str, name: str, trained_storage: Path) -> None:
    run(trained, f"score {model} -o scores.csv")
    found = rows("scores.csv")
    assert list(found[0]) == ["index", "label", "split", name]
    assert len(found) == 180
    assert {row["split"] for row in found} == {"validation"}
    assert [int(row["label"]) for row in found] == load_digits().target[[int(row["index"]) for row in found]].tolist()
    mean = sum(float(row[name]) for row in found) / len(found)
    told = raygen.load(model, storage=trained_storage).metrics["metrics"]
    assert (
        mean == pytest.approx(told["val_mse"]) if model == "ae" else mean == pytest.approx(-told["val_elbo"], rel=0.02)
    )


def test_false_alarms_are_as_rare_as_told(trained: CliRunner) -> None:
    said = run(trained, "score zeros --split test --false-alarms 0.1 -o scores.csv").stderr
    told = re.search(
        r"threshold (\S+), beyond which 0.1 of .*, from (\d+) validation images: (\d+) of these 180", said
    )
    assert told
    assert int(told[2]) == (inspection.select(data.load(data.DataOptions()), "validation").labels == 0).sum()
    found = rows("scores.csv")
    assert list(found[0]) == ["index", "label", "split", "reconstruction_mse", "beyond_threshold"]
    beyond = [float(row["reconstruction_mse"]) > float(told[1]) for row in found]
    assert [int(row["beyond_threshold"]) for row in found] == beyond
    assert sum(beyond) == int(told[3])
    normal = [is_beyond for row, is_beyond in zip(found, beyond, strict=True) if row["label"] == "0"]
    assert sum(normal) <= 0.3 * len(normal), "some of the normal ones at most: so few images scatter"
    assert sum(beyond) - sum(normal) > 0.8 * (len(found) - len(normal)), "most of those that are not normal"


def test_the_images_that_set_a_threshold_keep_to_it(trained: CliRunner) -> None:
    """Though the score of a VAE holds noise: here each image has the same as when the threshold was set."""
    run(trained, "score vae --false-alarms 0.1 -o scores.csv")
    assert sum(int(row["beyond_threshold"]) for row in rows("scores.csv")) == 17, "the 18th of 181 sets it"


def test_the_worst_are_drawn_with_where_they_err(trained: CliRunner, trained_storage: Path) -> None:
    noise = np.random.RandomState(0).randint(256, size=(3, 8, 8)).astype(np.uint8)
    np.save("mine.npy", np.concatenate([source_pixels()[:30], noise]))
    said = run(trained, "score ae --data mine.npy --picture worst.png").stderr
    scores = [float(row["reconstruction_mse"]) for row in rows("scores.csv")]
    order = sorted(range(33), key=lambda row: -scores[row])[:16]
    assert set(order[:3]) == {30, 31, 32}
    assert f"the worst 16 in worst.png, from the left index {', '.join(map(str, order))}" in said
    with Image.open("worst.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(float)[:, -16 * CELL :]
    assert pixels.shape == (3 * CELL, 16 * CELL)
    image, rebuilt, error = (pixels[top + 1 : top + CELL - 1 : 4] for top in range(0, 3 * CELL, CELL))
    assert (image[:, 1 : CELL - 1 : 4] == np.load("mine.npy")[order[0]]).all()
    assert error.max() == 255
    difference = np.abs(image - rebuilt)
    np.testing.assert_allclose(error, difference * (255 / difference.max()), atol=2.5)


@pytest.mark.parametrize(
    ("command", "origin"),
    [
        ("map ae", r"180 images of digits .*: PCA, with [4-9]\d% of the variance"),
        ("map vae --split all --images 300 --method tsne", "300 images of digits .*: t-SNE, perplexity 30"),
        ("map plane --split test", "180 images of digits .*: the two latents as they are"),
        ("map plane --method pca --data mine.npy", "50 images of mine .*: PCA, with 100% of the variance"),
        ("map plane --decoded", "180 images of digits .*: the two latents as they are"),
    ],
)
def test_latents_are_drawn_in_the_plane(trained: CliRunner, command: str, origin: str) -> None:
    np.save("mine.npy", source_pixels()[:50])
    assert re.search(origin, run(trained, f"{command} -o map.png").stderr)
    width, height = size("map.png")
    assert width == (2 * height if "--decoded" in command else height)


def test_noise_is_stranger_than_digits(trained: CliRunner) -> None:
    noise = np.random.RandomState(0).randint(256, size=(30, 8, 8)).astype(np.uint8)
    np.save("mine.npy", np.concatenate([source_pixels()[:30], noise]))
    run(trained, "score ae --data mine.npy -o scores.csv")
    found = rows("scores.csv")
    assert [int(row["index"]) for row in found] == list(range(60)), "all of them, in the array's order"
    assert "label" not in found[0]
    scores = [float(row["reconstruction_mse"]) for row in found]
    assert max(scores[:30]) < min(scores[30:])


# Where models are found


def test_the_best_models_are_taken_out_of_a_storage(trained: CliRunner, trained_storage: Path) -> None:
    def files_in(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert "1 best model of vae in models, the very best in models/1" in run(trained, "get vae -o models").stderr
    whole = files_in(Path("models"))
    assert {"1/spec.json", "1/model.safetensors", "1/metrics.json", "1/samples.png"} <= set(whole)
    vae = Run(Storage(trained_storage), "vae")
    assert whole == {f"1/{name}": content for name, content in vae.best_files().items()}
    run(trained, "sample models/1 -o here.png")
    run(trained, "sample vae -o there.png")
    assert Path("here.png").read_bytes() == Path("there.png").read_bytes()
    shutil.copytree("models/1", "models/2")
    run(trained, "get ae -o models --replace")
    ae = Run(Storage(trained_storage), "ae")
    assert files_in(Path("models")) == {f"1/{name}": content for name, content in ae.best_files().items()}


def test_a_best_folder_and_a_file_outside_any_run_serve_as_well(
    trained: CliRunner, trained_storage: Path, tmp_path: Path
) -> None:
    best = best_folder(trained_storage, "vae", tmp_path / "taken")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(best / "model.safetensors", alone / "mine.safetensors")
    shutil.copy(best / "spec.json", alone)
    places = ("vae", "vae/best/1", best, best / "model.safetensors", alone / "mine.safetensors")
    for number, place in enumerate(places):
        run(trained, f"encode {place} -o {number}.npz")
    expected = np.load("0.npz")["latents"]
    assert all((np.load(f"{number}.npz")["latents"] == expected).all() for number in range(1, len(places)))
    assert "by this vae in" in run(trained, f"encode {alone / 'mine.safetensors'} -o last.npz").stderr


REFUSED = {
    "sample ae": "'ae' cannot be sampled: it has no prior over its latents; --prior gmm fits one",
    "sample ae --components 3": "add --prior gmm",
    "sample ae --prior gmm --components 5000": "has only 1437 training images",
    "sample gan --prior gmm": "leave out --prior gmm",
    "sample ae --prior flow": "gmm",
    "reconstruct gan": "gan has no encoder to look at images with; ae, aegan, vae, vaegan have one",
    "encode gan": "gan has no encoder",
    "score gan": "gan has no encoder",
    "map gan": "gan has no encoder",
    "map ae --decoded": "--decoded is for a model of two latents, not 6: train one with --latent-dim 2",
    "map plane --decoded --method pca": "leave out --method",
    "map ae --method umap": "--method",
    "map ae --images 4": "--images",
    "map ae -o folder": "cannot write folder",
    "score ae --false-alarms 0": "--false-alarms 0: name the part of normal images, such as 0.01 for 1 %",
    "score ae --false-alarms 1": "--false-alarms 1: name the part",
    "score ae --false-alarms 0.001": "takes 999 normal validation images, not 180: use --false-alarms 0.0056 or more",
    "score zeros --false-alarms 0.01": "takes 99 normal validation images",
    "score ae --picture no/worst.png": "cannot write no/worst.png",
    "score ae --data nowhere": "neither a data set nor an existing folder or file",
    "score ae --image-size 16": "the model takes images of 8×8 with 1 channel, but digits has 16×16",
    "encode ae --data wide.npy": "the model takes images of 8×8 with 1 channel, but wide has 9×12 with 1 channel",
    "encode ae --image-size 3": "data.image_size",
    "encode ae --split rest": "--split",
    "decode ae wide.npy": "wide.npy holds no array `latents`: name a .npz file that `raygen encode` has written",
    "decode ae nothing.npz": "cannot read the latents nothing.npz (No such file or directory)",
    "decode ae bare.safetensors": "cannot read the latents bare.safetensors (damaged, or of another format)",
    "decode ae narrow.npz": "float32 of shape [20, 5]; this model decodes floats of shape [N, 6]",
    "decode ae torn.npz": "cannot read the latents torn.npz (damaged, or of another format)",
    "decode ae huge.npz": "`latents` holds values that are not finite",
    "decode ae infinite.npz": "`latents` holds values that are not finite",
    "decode ae mislabelled.npz": "`labels` is int64 of shape [3]; the classes of 20 latents",
    "decode gan narrow.npz": "gan has no encoder",
    "decode ae narrow.npz -o no/images.npz": "cannot write no/images.npz",
    "decode ae narrow.npz -o images.tar": "an array in a .npz file, or files in a folder",
    "get nothing": "there is no run 'nothing'",
    "get untrained": "untrained has no best model 1 (state: waiting)",
    "get ae -o folder": "cannot write folder: the folder is not empty; name a new one",
    "get ae -o folder --replace": "cannot write folder: it holds a, which must not be lost; name a new folder",
    "get ae -o bare.safetensors": "it is a file; name a folder",
    "get ae -o no/models": "make the folder no first",
    "encode nothing": "there is no run 'nothing'",
    "encode ae/best/2": "ae has no best model 2 (state: finished)",
    "encode ae/best/first": "ae/best/first: the best models of a run are ae/best/1, ae/best/2 and so on",
    "encode ae/best/0": "the best models of a run are ae/best/1",
    "encode ae/trials/001": "'ae/trials/001' is no name of a run; `raygen ls` lists those there are",
    "encode folder": "folder holds no model, and no run is called so: name one that `raygen get` has made, such as",
    "encode bare.safetensors": "has no spec.json beside it",
    "sample gan -o no/grid.png": "No such file or directory; make the folder no first",
    "sample gan -o folder": "cannot write folder: the folder is not empty; name a new one",
    "sample gan -o folder/a": "cannot write folder/a: it is a file; name a folder",
    "sample gan -o folder/a/b": "make the folder folder/a first",
    "sample gan -o samples.jpg": "an array in a .npz file, or files in a folder",
    "sample gan -n 10001": "a grid holds 10000 images at most, not 10001: write a .npz file or a folder",
    "sample ae -o samples.npz": "'ae' cannot be sampled",
    "reconstruct ae -o no/pairs.png": "cannot write no/pairs.png",
    "interpolate ae -o folder": "cannot write folder",
    "encode ae -o folder": "cannot write folder",
    "score ae -o no/scores.csv": "cannot write no/scores.csv",
    "interpolate ae --steps 1": "--steps",
    "evaluate gan --metrics val_mse": "gan cannot be judged by val_mse",
    "evaluate gan --metrics frechett": "did you mean 'val_frechet'",
    "evaluate ae --metrics frechet": "with --prior gmm",
    "evaluate ae --metrics anomaly_auroc": "add --normal-class 0",
    "evaluate zeros --normal-class 1": "the model was trained on class 0; leave it out",
    "evaluate ae --images 1": "leave out --images",
    "evaluate gan --samples 1": "use --samples 2000",
    "evaluate gan --split train": "--split",
    "evaluate gan --reference all": "--reference",
    "evaluate ae --data wide.npy": "the model takes images of 8×8",
    "evaluate ae --network vgg": "--network",
    "evaluate gan --network inception --fid-weights none.pth": "cannot read none.pth",
    "compare ae": "two different runs or more",
    "compare ae ae": "two different runs or more",
    "compare ae zeros": "their data.normal_class is None and 0",
    "compare ae nothing": "there is no run 'nothing'",
    "compare ae gan --metrics elbo,mse": "none of these models can be judged by val_elbo",
    "compare ae gan --metrics frechett": "did you mean 'val_frechet'",
    "compare ae gan --metrics ,": "name at least one",
    "compare ae gan --picture no/all.png": "cannot write no/all.png",
}


@pytest.mark.parametrize("command", REFUSED)
def test_bad_input_gets_one_line_and_code_2(trained: CliRunner, tmp_path: Path, command: str) -> None:
    np.save("wide.npy", np.zeros((20, 9, 12), dtype=np.uint8))
    zeros = np.zeros((20, 6), dtype=np.float32)
    np.savez("narrow.npz", latents=zeros[:, :5])
    np.savez("infinite.npz", latents=zeros + np.inf)
    np.savez("huge.npz", latents=zeros.astype(np.float64) + 1e300)
    np.savez_compressed("torn.npz", latents=np.random.RandomState(0).rand(20, 6).astype(np.float32))
    whole = Path("torn.npz").read_bytes()
    Path("torn.npz").write_bytes(whole[:150] + b"\0" * 30 + whole[180:])
    np.savez("mislabelled.npz", latents=zeros, labels=np.arange(3))
    given = sorted(path.name for path in tmp_path.iterdir())
    Path("folder").mkdir()
    Path("folder/a").touch()
    Path("bare.safetensors").touch()
    result = trained.invoke(app, command.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *left_out, line = result.stderr.splitlines()
    assert all(said.startswith("left out: ") for said in left_out)
    assert REFUSED[command] in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*given, "bare.safetensors", "folder", "a"])


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_file_stays(trained: CliRunner) -> None:
    Path("grid.png").touch(mode=0o444)
    result = trained.invoke(app, ["sample", "gan", "-o", "grid.png"])
    assert result.exit_code == 2
    assert "cannot write grid.png: it is read-only" in result.stderr


def test_a_link_stays_a_link_and_a_device_a_device(trained: CliRunner, tmp_path: Path) -> None:
    Path("linked.png").symlink_to(tmp_path / "target.png")
    run(trained, "sample gan -o linked.png")
    assert Path("linked.png").is_symlink()
    assert size("target.png") == (8 * CELL, 8 * CELL)
    run(trained, "score ae -o /dev/null")
    run(trained, "sample gan -o /dev/null")
    assert Path("/dev/null").is_char_device()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
