"""What every kind of source hands to `load`: images that are not read yet, and what tells if they have changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raygen.data.images import Images


@dataclass(frozen=True)
class Source:
    """The images of a source: `read` opens them, `fingerprint` is a text that changes with their content.

    `read_without` opens them without some damaged files, by their names, each with the reason; a source that has to be
    whole has None.
    A set with an official test part has it in `test`, or says in `no_test` which of its files is missing.
    """

    fingerprint: str
    read: Callable[[], Images]
    test: Source | None = None
    no_test: str = ""
    read_without: Callable[[Mapping[str, str]], Images] | None = None

    @property
    def has_official_test(self) -> bool:
        """Whether the set has an official test part, be its files here or not: then no other is split off."""
        return self.test is not None or self.no_test != ""
