"""What a listing of a storage tells of one key."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What a listing tells of a key; `version` changes whenever its content does, and never without a write."""

    key: str
    size_bytes: int
    version: str
