"""Names of a source's images in a file, which is read when they are asked for: there may be millions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raygen.errors import DataError

END = b"\0"
"""What follows each name: the one byte besides "/" that no name of a file holds."""


def in_bytes(names: Iterable[str]) -> bytes:
    """What the file holds."""
    return b"".join(os.fsencode(name) + END for name in names)


@dataclass(frozen=True)
class Names:
    """The names of a source's images, in its order: paths relative to a folder, "/" between their parts."""

    path: Path

    def count(self) -> int:
        """How many names the file holds whole; raises OSError if it cannot be read."""
        return self.path.read_bytes().count(END)

    def at(self, positions: Sequence[int]) -> list[str]:
        """The names of the images at these positions in the source; raises DataError if the file is gone."""
        try:
            names = self.path.read_bytes().split(END)
        except OSError as error:
            raise DataError(f"cannot read the names of images in {self.path} ({error.strerror}): try again") from error
        return [os.fsdecode(names[position]) for position in positions]
