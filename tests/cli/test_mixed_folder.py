"""A folder of 500 mixed pictures all the way: what is encoded, decoded, scored and restored keeps its name."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import raygen
from cli.main import app
from raygen import inspection
from raygen.api.loading import load_images
from raygen.errors import DamagedFilesWarning
from raygen.spec import TrainSpec
from tests.cli.conftest import finish

KINDS = [
    ("RGB", "jpg"),
    ("RGBA", "png"),
    ("L", "PNG"),
    ("LA", "webp"),
    ("P", "gif"),
    ("CMYK", "tif"),
    ("1", "tiff"),
    ("I;16", "png"),
    ("RGB", "bmp"),
    ("CMYK", "JPEG"),
]
ODD = [
    "a.jpg",
    "a.png",
    "a.jpg.png",
    "x/a.png",
    "[x].png",
    "[bold]markup.png",
    'comma, "quoted".png',
    "=1+2.bmp",
    "line\nbreak.png",
    "carriage\rreturn.png",
    "esc\x1b[31mred.png",
    os.fsdecode(b"latin\xe9.png"),
]
BROKEN = "x/picture 031.PNG"
NAMED = "1 of 500 images in {place} cannot be decoded and is left out: x/picture 031.PNG (image file is truncated"


def picture(random: np.random.RandomState, mode: str) -> Image.Image:
    """Two colours, each on one side, in a picture of any size and shape."""
    width, height = random.randint(8, 41, size=2)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = random.randint(256, size=(2, 3))
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 pictures, one of them cut off, beside files that are no pictures."""
    folder = tmp_path_factory.mktemp("mixed") / "photos"
    random = np.random.RandomState(0)
    for number in range(500):
        mode, ending = KINDS[number % len(KINDS)]
        within = ("", "holiday 2024/", "été/冬/", "x/")[number % 4]
        name = ODD[number] if number < len(ODD) else f"{within}picture {number:03}.{ending}"
        if number == 31:
            name, mode = BROKEN, "RGB"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(random, "RGB" if number < len(ODD) else mode).save(path)
    (folder / BROKEN).write_bytes((folder / BROKEN).read_bytes()[:-30])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").touch()
    return folder


@pytest.fixture(scope="module")
def storage_of_mixed(photos: Path) -> Path:
    """A storage with a model that learned to restore such pictures."""
    storage = photos.parent / "runs"
    settings = {
        "data.source": str(photos),
        "data.image_size": 16,
        "data.corruption": "noise",
        "model.arch": "mlp",
        "model.hidden": [64],
        "training.epochs": 5,
        "optimizer.lr": 3e-3,
    }
    with pytest.warns(DamagedFilesWarning, match="picture 031"):
        finish(storage, "mixed", TrainSpec.create("ae", settings))
    return storage


@pytest.fixture
def run_mixed(storage_of_mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner(env={"RAYGEN_STORAGE": str(storage_of_mixed)})


@pytest.fixture
def names(photos: Path) -> list[str]:
    """The names of all pictures that can be decoded, in the order of the source."""
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    found = [path.relative_to(photos).as_posix() for path in paths]
    return [name for name in found if name not in (BROKEN, "notes.txt", ".hidden.png")]


def run(runner: CliRunner, *words: str) -> Result:
    result = runner.invoke(app, list(words))
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    return result


def files_below(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def expected_files(names: list[str]) -> set[str]:
    changed = {"a.jpg": "a.jpg.png.png"}
    return {changed.get(name, f"{os.path.splitext(name)[0]}.png") for name in names}


def test_the_run_keeps_which_file_was_left_out(storage_of_mixed: Path) -> None:
    facts = raygen.load("mixed", storage=storage_of_mixed).metrics["data"]
    assert facts["train"] + facts["validation"] + facts["test"] == 499
    assert list(facts["left_out"]) == [BROKEN]


def test_names_go_from_the_folder_into_the_latents_and_back(
    run_mixed: CliRunner, storage_of_mixed: Path, photos: Path, names: list[str]
) -> None:
    said = run(run_mixed, "encode", "mixed", "--data", str(photos)).stderr
    assert said.count(NAMED.format(place=photos)) == 1
    with np.load("latents.npz") as found:
        assert found["names"].tolist() == names
        assert found["index"].tolist() == list(range(499))
    assert "499 images decoded" in run(run_mixed, "decode", "mixed", "latents.npz", "-o", "decoded").stderr
    assert files_below("decoded") == expected_files(names)
    run(run_mixed, "decode", "mixed", "latents.npz", "-o", "images.npz")
    with np.load("images.npz") as found:
        images, kept = found["images"], found["names"].tolist()
    assert kept == names
    for name in ("a.png", "x/a.png", "line\nbreak.png"):
        with Image.open(Path("decoded", name)) as image:
            assert (np.asarray(image).transpose(2, 0, 1) == images[names.index(name)]).all()
    model = raygen.load("mixed", storage=storage_of_mixed)
    with pytest.warns(DamagedFilesWarning, match="1 of 123 images"):
        originals = inspection.select(load_images(model, data=str(photos / "x")), "all").images.float().numpy()
    rebuilt = images[[row for row, name in enumerate(names) if name.startswith("x/")]].astype(np.float32)
    shifted = np.roll(rebuilt, 1, axis=0)
    assert ((rebuilt - originals) ** 2).mean() < 0.7 * ((shifted - originals) ** 2).mean()


def test_each_part_has_its_names(run_mixed: CliRunner, names: list[str]) -> None:
    found = []
    for part in ("train", "validation", "test"):
        run(run_mixed, "encode", "mixed", "--split", part)
        with np.load("latents.npz") as arrays:
            assert arrays["names"].tolist() == [names[position] for position in arrays["index"]]
            found += arrays["names"].tolist()
    assert sorted(found) == sorted(names)


def test_scores_stand_beside_names(run_mixed: CliRunner, photos: Path, names: list[str]) -> None:
    result = run(
        run_mixed, *("score", "mixed", "--data", str(photos), "--false-alarms", "0.1", "--picture", "worst.png")
    )
    assert result.stderr.count(NAMED.format(place=photos)) == 1
    with open("scores.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "name", "split", "reconstruction_mse", "beyond_threshold"]
    assert [row["name"] for row in rows] == names
    worst = max(rows, key=lambda row: float(row["reconstruction_mse"]))
    assert f"in worst.png, from the left {worst['name']}, " in result.stderr


def test_odd_names_are_told_in_one_line(run_mixed: CliRunner, photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in ODD:
        if "/" not in name:
            (odd / name).write_bytes((photos / name).read_bytes())
    (odd / "esc\x1b[2J\nraygen: all is well.png").touch()
    said = run(run_mixed, "score", "mixed", "--data", str(odd), "--picture", "worst.png").stderr
    warning, *_, worst = said.splitlines()
    assert warning.endswith(r"left out: esc\x1b[2J\nraygen: all is well.png (unknown format)")
    assert {r"line\nbreak.png", r"esc\x1b[31mred.png", r"latin\udce9.png", "[bold]markup.png"} <= set(
        worst.partition("from the left ")[2].split(", ")
    )


def test_all_that_can_be_decoded_is_restored_under_its_name(
    run_mixed: CliRunner, photos: Path, names: list[str]
) -> None:
    result = run(run_mixed, "restore", "mixed", "--data", str(photos), "-o", "restored", "--clean", str(photos))
    assert NAMED.format(place=photos) in result.stderr
    assert "499 images restored" in result.stderr
    assert files_below("restored") == expected_files(names)
    with Image.open("restored/a.png") as image:
        assert image.size == (16, 16), "cropped and resized as for the training"
    assert result.stdout.startswith("damaged    PSNR 100.00 dB"), "each is compared with its own"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../a.png", "`names` holds '../a.png', which is no path of a file in a folder"),
        ("/tmp/a.png", "which is no path of a file in a folder"),
        ("", "which is no path of a file in a folder"),
        ("a\0.png", "which is no path"),
        ("\ud800.png", "which is no path"),
        ("b.png", "holds one name twice"),
        (3, "`names` is int64 of shape [2]; the names of 2 latents are texts of shape [2]"),
    ],
)
def test_names_from_elsewhere_write_nothing_beside_the_folder(
    run_mixed: CliRunner, tmp_path: Path, name: str | int, said: str
) -> None:
    names = np.array(["b.png", name] if isinstance(name, str) else [name, name])
    np.savez("latents.npz", latents=np.zeros((2, 32), dtype=np.float32), names=names)
    result = run_mixed.invoke(app, ["decode", "mixed", "latents.npz", "-o", "decoded"])
    assert result.exit_code == 2
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["latents.npz"]


def test_a_warning_is_shown_once_whatever_is_read_how_often(run_mixed: CliRunner, photos: Path) -> None:
    said = run(run_mixed, "sample", "mixed", "--prior", "gmm", "--components", "2", "-n", "4").stderr
    assert said.count("cannot be decoded and is left out") == 1
    said = run(run_mixed, "evaluate", "mixed", "--prior", "gmm", "--metrics", "coverage").stderr
    assert said.count("cannot be decoded and is left out") == 1
