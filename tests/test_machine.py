"""What belongs to this machine lies in folders of its own that only their user can open."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from raygen import machine
from raygen.errors import ServiceError
from raygen.storage import Storage

BUCKET = Storage("s3://bucket/runs?endpoint=http://127.0.0.1:9000")


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where state is kept: a folder that is not there yet, nor what is above it."""
    folder = tmp_path / "above" / "state"
    monkeypatch.setenv("RAYGEN_STATE", str(folder))
    return folder


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_each_storage_has_a_folder_that_people_recognise(base: Path, tmp_path: Path) -> None:
    folder = machine.state_folder(BUCKET)
    assert folder.parents[1] == base
    assert folder.name.startswith("s3-bucket-runs-")
    others = [
        "s3://bucket/runs",
        "s3://bucket/runs?endpoint=http://127.0.0.1:9001",
        "s3://other/runs",
        "gs://bucket/runs",
    ]
    found = {machine.state_folder(Storage(other)) for other in (*others, tmp_path / "runs")}
    assert len(found - {folder}) == 5
    assert not base.exists(), "looking makes nothing"


def test_one_folder_has_one_state_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (tmp_path / "link").symlink_to(runs)
    monkeypatch.chdir(tmp_path)
    spellings = [runs, "runs", tmp_path / "runs" / ".." / "runs", tmp_path / "link"]
    assert len({machine.state_folder(Storage(each)) for each in spellings}) == 1


def test_two_machines_with_one_home_have_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.state_folder(BUCKET)
    monkeypatch.setattr(socket, "gethostname", lambda: "another/machine")
    there = machine.state_folder(BUCKET)
    assert here != there
    assert there.parent.name == "another-machine"


def test_without_the_variable_it_is_in_the_users_own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYGEN_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of-user"))
    assert machine.state_folder(BUCKET).parents[1] == tmp_path / "of-user" / "raygen"


def test_all_that_is_made_is_for_this_user_alone(base: Path) -> None:
    before = os.umask(0)
    try:
        folder = machine.state_folder(BUCKET)
        machine.make_private(folder)
        machine.make_private(folder)
    finally:
        os.umask(before)
    assert [mode(each) for each in (base.parent, base, folder.parent, folder)] == [0o700] * 4


def test_a_folder_that_others_can_write_to_is_refused(base: Path) -> None:
    base.mkdir(parents=True)
    base.chmod(0o775)
    with pytest.raises(ServiceError, match=rf"others can write to {base}, .*; type: chmod go-w {base}, or"):
        machine.make_private(machine.state_folder(BUCKET))
    base.chmod(0o755)
    machine.make_private(machine.state_folder(BUCKET))


def test_another_users_folder_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        base.mkdir(parents=True, mode=0o700)
        os.chown(base, 12345, 12345)
    else:
        monkeypatch.setenv("RAYGEN_STATE", "/")
    with pytest.raises(ServiceError, match=r"(belongs to another user|cannot make).*name another.*RAYGEN_STATE"):
        machine.make_private(machine.state_folder(BUCKET))


def test_a_folder_that_cannot_be_made_is_told_with_what_to_type(base: Path) -> None:
    base.parent.mkdir()
    base.write_text("")
    with pytest.raises(ServiceError, match=r"cannot make .*: .*; name another folder .* with RAYGEN_STATE"):
        machine.make_private(machine.state_folder(BUCKET))


class TestTemporaryFolder:
    """Ray's own files, which Ray opens to all, lie in a folder that nobody else can enter or take first."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> Path:
        (tmp_path / "of-storage").mkdir(mode=0o700)
        return tmp_path / "of-storage"

    def test_it_is_private_short_and_the_same_each_time(self, state: Path) -> None:
        folder = machine.temporary_folder(state)
        assert mode(folder) == 0o700
        assert len(str(folder)) < 40
        assert machine.temporary_folder(state) == folder
        machine.remove_temporary_folder(state)
        assert not folder.exists()
        assert list(state.iterdir()) == []

    def test_two_of_one_storage_never_have_one_name(self, state: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        folders = [machine.temporary_folder(each) for each in (state, other)]
        assert folders[0] != folders[1]
        for each in (state, other):
            machine.remove_temporary_folder(each)

    def test_one_that_was_opened_to_others_is_not_used_again(self, state: Path) -> None:
        folder = machine.temporary_folder(state)
        folder.chmod(0o777)
        again = machine.temporary_folder(state)
        assert again != folder
        machine.remove_temporary_folder(state)
        assert folder.exists(), "whose it is now is not known"
        folder.rmdir()

    def test_a_link_in_its_place_is_not_followed(self, state: Path, tmp_path: Path) -> None:
        folder = machine.temporary_folder(state)
        folder.rmdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        folder.symlink_to(elsewhere)
        assert machine.temporary_folder(state) != folder
        machine.remove_temporary_folder(state)
        assert elsewhere.exists()
        folder.unlink()

    @pytest.mark.parametrize("content", [b"", b".", b"raygen-x", b"/", b"\xff", b"/tmp/\0", b"/no/raygen-folder"])
    def test_a_damaged_note_names_no_folder(
        self, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        """Whose note is empty would name the folder that a dispatcher works in, which must not be removed."""
        work = tmp_path / "work" / "raygen-x"
        work.mkdir(parents=True)
        work.chmod(0o700)
        work.parent.chmod(0o700)
        monkeypatch.chdir(work.parent)
        (state / "temporary-folder").write_bytes(content)
        machine.remove_temporary_folder(state)
        assert work.is_dir()
        (state / "temporary-folder").write_bytes(content)
        folder = machine.temporary_folder(state)
        assert mode(folder) == 0o700
        machine.remove_temporary_folder(state)

    def test_one_that_cannot_be_written_down_is_not_left(
        self, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(machine, "LONGEST_TEMPORARY", 999)
        before = set(tmp_path.iterdir())
        (state / "temporary-folder").mkdir()
        with pytest.raises(OSError, match="temporary-folder"):
            machine.temporary_folder(state)
        assert set(tmp_path.iterdir()) == before
        assert [each.name for each in state.iterdir()] == ["temporary-folder"]

    def test_one_that_could_not_be_removed_whole_is_removed_the_next_time(
        self, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = machine.temporary_folder(state)
        with monkeypatch.context() as busy:
            busy.setattr("shutil.rmtree", lambda path, ignore_errors: None)
            machine.remove_temporary_folder(state)
        assert machine.temporary_folder(state) == folder
        machine.remove_temporary_folder(state)
        assert not folder.exists()
        assert list(state.iterdir()) == []

    def test_a_long_temporary_folder_of_the_system_is_not_used(
        self, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 10)))
        folder = machine.temporary_folder(state)
        assert folder.parent == Path("/tmp")
        machine.remove_temporary_folder(state)
