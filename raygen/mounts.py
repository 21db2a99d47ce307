"""Which file system a folder is on, as Linux tells; not every one keeps what a database needs."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

MOUNTS = Path("/proc/self/mountinfo")

NETWORK = re.compile(
    r"(fuse\.)?(nfs\d?|cifs|smb\w*|lustre|gpfs|ceph(-fuse)?|9p|afs|beegfs\w*|glusterfs|orangefs|pvfs2|panfs|wekafs"
    r"|sshfs|s3fs|goofys|gcsfuse|blobfuse2?|mount-s3|mountpoint-s3|rclone|juicefs)"
)
"""File systems that other machines may write to at the same time, of the kernel's own and under FUSE."""


def network_file_system(folder: Path) -> str | None:
    """The name of the network file system that a folder is on, or would be made on; None if it is on another.

    None too if the system does not tell, as outside Linux.
    """
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    kind = file_system(PurePosixPath(folder.resolve()), mounts)
    return kind if kind is not None and NETWORK.fullmatch(kind) else None


def file_system(folder: PurePosixPath, mounts: str) -> str | None:
    """The file system at an absolute path without links, by the text of /proc/PID/mountinfo (proc(5)); None if untold.

    Of mounts at one place the last hides the others.
    """
    found = {_plain(line.split()[4]): line.partition(" - ")[2].split()[0] for line in mounts.splitlines() if line}
    return next((found[str(each)] for each in (folder, *folder.parents) if str(each) in found), None)


def _plain(escaped: str) -> str:
    """A mount point with its spaces and tabs, which mountinfo writes in octal after a backslash."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), escaped)
