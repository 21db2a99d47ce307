"""The commands and the Python of the README run as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.commands import WHERE
from cli.main import app

EXAMPLES = Path(__file__).parent.parent / "examples"
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every `raygen …` line of the README's shell blocks, without its comment."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
    return [line.partition("  #")[0].strip() for line in blocks.splitlines() if line.startswith("raygen ")]


def test_the_readme_shows_every_command() -> None:
    shown = {line.split()[1] for line in commands()}
    assert set(WHERE) - {"datasets"} == shown
    assert "raygen datasets" in README


@pytest.mark.parametrize("command", [line for line in commands() if line.split()[1] in ("tune", "train")])
def test_every_job_in_the_readme_has_a_valid_spec(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "")
    runner = CliRunner()
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    (tmp_path / "my_space.toml").write_text(runner.invoke(app, ["spaces", "vae"]).stdout)
    result = runner.invoke(app, [*shlex.split(command)[1:], "--dry-run"])
    if " JOB" in command:
        assert "there is no job 'JOB'" in result.stderr
    elif " --from shapes" in command:
        assert "there is no run 'shapes'" in result.stderr
    elif "--gpus" in command and result.exit_code:
        assert re.search(r"this machine has \d+ GPUs", result.stderr), "refused for another reason than missing GPUs"
    else:
        assert result.exit_code == 0, result.stderr


def test_the_make_targets_of_the_first_screen_exist() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.mark.ray
@pytest.mark.slow
def test_the_python_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.setenv("RAYGEN_STORAGE", str(tmp_path))
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 4
    images, card, latents, scores = (names[name] for name in ("images", "card", "latents", "scores"))
    assert images.shape == (16, 1, 8, 8)
    assert list(card.values) == ["test_elbo", "test_frechet"]
    assert len(latents) == len(scores.values) == card.values["test_elbo"].images
