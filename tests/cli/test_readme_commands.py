"""What the README types about a trained model runs as it stands there, on really trained small models."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from raygen.data import Dataset
from tests.test_readme import commands

USES = (
    *("show", "get", "evaluate", "compare", "sample", "restore", "reconstruct", "interpolate"),
    *("encode", "decode", "map", "score"),
)
RUNS = {"JOB": "vae", "VAE": "vae", "AE": "ae", "GAN": "gan", "GAN_0": "gan", "GAN_1": "gan"} | {
    "AEGAN_0": "aegan",
    "AEGAN_1": "aegan",
}
OUTPUTS = ("-o", "--picture", "--curves", "--plot", "--film")


def used() -> list[list[str]]:
    """The README's commands about trained models, word by word, in their order.

    But for one that needs published weights, and one that tells of a search.
    """
    lines = [shlex.split(line)[1:] for line in commands()]
    return [words for words in lines if words[0] in USES and not {"inception", "--why"} & set(words)]


def write_pictures(folder: Path, images: torch.Tensor) -> None:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")


@pytest.mark.slow
def test_the_readme_uses_models_as_it_says(trained: CliRunner, digits: Dataset) -> None:
    assert {words[0] for words in used()} == set(USES)
    images = digits.validation.images[:50]
    write_pictures(Path("photos"), images)
    write_pictures(Path("damaged"), images)
    for words in used():
        # One README line is of a model that was trained to restore images.
        runs = {**RUNS, "AE": "noisy"} if words[0] == "restore" else RUNS
        result = trained.invoke(app, [runs.get(word, word) for word in words])
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"
        written = [value for option, value in itertools.pairwise(words) if option in OUTPUTS]
        assert all(Path(path).exists() for path in written), shlex.join(words)
        assert written or result.stdout, f"{shlex.join(words)} shows or writes something"
