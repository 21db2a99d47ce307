"""Which file system a folder is on."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from raygen import mounts
from raygen.mounts import file_system, network_file_system

MOUNTS = r"""
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
24 22 0:22 / /proc rw,nosuid shared:13 - proc proc rw
31 22 0:27 / /home rw,relatime shared:15 - autofs systemd-1 rw,fd=43,pgrp=1
90 31 0:55 / /home rw,relatime shared:50 - nfs4 server:/export/home rw,vers=4.2,addr=10.0.0.5
91 90 259:3 /scratch /home/me/scratch rw,noatime master:7 propagate_from:2 - xfs /dev/nvme0n1p3 rw
92 22 0:60 / /mnt/lab\040disk rw - cifs //server/lab rw,vers=3.0
93 22 0:61 / /mnt/data rw - fuse.sshfs me@server: rw,user_id=1000
""".strip()


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/srv/runs", "ext4"),
        ("/homes/me", "ext4"),
        ("/home/me/runs", "nfs4"),
        ("/home", "nfs4"),
        ("/home/me/scratch/runs", "xfs"),
        ("/mnt/lab disk/runs", "cifs"),
        ("/mnt/data", "fuse.sshfs"),
    ],
)
def test_the_longest_mount_point_counts_and_of_equal_ones_the_last(folder: str, kind: str) -> None:
    assert file_system(PurePosixPath(folder), MOUNTS) == kind


def test_a_system_that_tells_nothing_names_none() -> None:
    assert file_system(PurePosixPath("/home"), "") is None


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        *((name, True) for name in ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "9p", "beegfs")),
        *((name, True) for name in ("fuse.ceph-fuse", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.lustre")),
        *((name, False) for name in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "nfsd")),
        *((name, False) for name in ("fuseblk", "fuse.gocryptfs", "fuse.fuse-overlayfs", "virtiofs")),
    ],
)
def test_network_file_systems_are_told_from_others(
    kind: str, is_network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(f"1 0 0:1 / / rw - {kind} source rw\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    assert network_file_system(tmp_path / "not" / "made") == (kind if is_network else None)


def test_a_link_is_followed_to_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk)
    (tmp_path / "mountinfo").write_text(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {disk.resolve()} rw - nfs b rw\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    assert network_file_system(tmp_path / "link" / "runs") == "nfs"


def test_outside_linux_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "nothing")
    assert network_file_system(tmp_path) is None
