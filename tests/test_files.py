"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygen import files
from raygen.errors import RunError


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with files.whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def interrupted_at(path: Path) -> None:
    with files.whole(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt


def test_what_ends_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(RunError, match=r"cannot write .*scores.csv: No space left on device"), files.whole(path):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_writers_at_once_do_not_meet_and_what_a_killed_one_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    (tmp_path / ".images.npy.node-1.partial").write_text("left behind by a killed process")
    with files.replacing(path, writer="node-1") as one, files.replacing(path, writer="node-2") as other:
        one.write_text("1")
        other.write_text("2")
    assert path.read_text() == "1", "who ends last"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_written_to(tmp_path: Path) -> None:
    with files.whole(Path("/dev/null")) as partial:
        assert partial == Path("/dev/null")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(("name", "reason"), [("", "it is a folder"), ("no/a.csv", "make the folder .*/no first")])
def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        files.check_writable(tmp_path / name)


def test_a_folder_is_filled_when_all_is_there(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with files.whole_folder(folder) as partial:
            (partial / "a.png").touch()
            assert not (folder / "a.png").exists()
        assert [path.name for path in folder.iterdir()] == ["a.png"]
        with pytest.raises(RunError, match="the folder is not empty"), files.whole_folder(folder):
            pass


def test_only_what_may_be_replaced_is(tmp_path: Path) -> None:
    for name in ("1", "2", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    with files.whole_folder(tmp_path, replaces=r"\d+") as partial:
        (partial / "1").mkdir()
        assert (tmp_path / "1" / "old").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".hidden", "1", "old"]
    (tmp_path / "notes.txt").touch()
    with (
        pytest.raises(RunError, match=r"it holds notes.txt, which must not be lost"),
        files.whole_folder(tmp_path, replaces=r"\d+"),
    ):
        pass
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "1").exists()


def interrupted_in(folder: Path) -> None:
    with files.whole_folder(folder) as partial:
        (partial / "a.png").touch()
        raise KeyboardInterrupt


def test_what_ends_half_way_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(KeyboardInterrupt):
            interrupted_in(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_names_of_files_do_nothing_to_a_terminal() -> None:
    assert files.printable("été/冬 [x].png") == "été/冬 [x].png"
    assert files.printable("a\nb\x1b[31m\x9b\u202e\udce9") == r"a\nb\x1b[31m\x9b\u202e\udce9"
