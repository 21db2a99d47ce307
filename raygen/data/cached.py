"""What this user's cache holds, how large it is and when it was last used; and what is not used any more, removed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raygen.data import cache, cache_room


@dataclass(frozen=True)
class Cached:
    """One thing in the cache; `used_at` is in seconds since 1970."""

    part: cache.Part
    name: str
    size_bytes: int
    used_at: float
    remove: Callable[[], bool] = field(compare=False, repr=False)
    """Removes it unless somebody uses it; returns whether it is gone."""

    def as_json(self) -> dict[str, Any]:
        """What it is, as plain JSON."""
        return {"part": self.part, "name": self.name, "size_bytes": self.size_bytes, "used_at": self.used_at}


def found() -> list[Cached]:
    """All that is in the cache and can be read, what was used last first."""
    everything = [*_images(), *_networks(), *_data_sets()]
    return sorted(everything, key=lambda each: (each.used_at, each.name), reverse=True)


def prune(unused_for_s: float) -> tuple[list[Cached], list[Cached]]:
    """Remove what was not used for so long; returns what is gone, and what stays as it is in use or not ours."""
    oldest = time.time() - unused_for_s
    old = [each for each in found() if each.used_at <= oldest]
    gone = [each for each in old if each.remove()]
    return gone, [each for each in old if each not in gone]


def _images() -> Iterator[Cached]:
    """Decoded images; the same ones under two names are told once, and go together."""
    with suppress(OSError):  # there is none yet, or it is closed to this user
        entries = list(cache_room.entries(cache.part("decoded")))
        links = [entry for entry in entries if entry.path.is_symlink() and entry.path.exists()]
        for entry in entries:
            if entry not in links:
                remove = partial(_remove_images, entry, [link for link in links if link.path.resolve() == entry.path])
                yield Cached("decoded", entry.path.stem, entry.size_bytes, entry.used_at_ns / 1e9, remove)


def _remove_images(entry: cache_room.CachedSource, links: Sequence[cache_room.CachedSource]) -> bool:
    return entry.remove() and all(link.remove() for link in links)


def _networks() -> Iterator[Cached]:
    for path in cache.part("classifiers").glob("*.safetensors"):
        with suppress(OSError):  # removed meanwhile, or closed to this user
            about = path.stat()
            yield Cached("classifiers", path.stem, about.st_size, about.st_mtime, partial(_remove_network, path))


def _remove_network(path: Path) -> bool:
    try:
        with FileLock(f"{path}.lock", timeout=0):
            path.unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True


def _data_sets() -> Iterator[Cached]:
    for path in cache.part("datasets").glob("[!.]*"):
        if files := list(_files(path)):
            size_bytes = sum(each.st_size for each in files)
            used_at = max(each.st_mtime for each in files)
            yield Cached("datasets", path.name, size_bytes, used_at, partial(_remove_data_set, path))


def _files(path: Path) -> Iterator[os.stat_result]:
    """What can be read about a data set's files and folders; one that is a link is that alone."""
    inside = (Path(folder, name) for folder, *names in os.walk(path) for name in (*names[0], *names[1]))
    for each in (path,) if os.path.islink(path) else (path, *inside):
        with suppress(OSError):  # removed meanwhile, or closed to this user
            yield each.lstat()


def _remove_data_set(path: Path) -> bool:
    """Unless a data set is being downloaded, or images are being decoded, which may be this one's."""
    locks = (*path.parent.glob(".*.lock"), *cache.part("decoded").glob("*.lock"))
    try:
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(FileLock(lock, timeout=0))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except (Timeout, OSError):
        return False
    return True
