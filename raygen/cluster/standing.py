"""What `raygen up` asked for: that this machine's head stays when no job is left, and which devices it has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raygen.capacity import Capacity
from raygen.cluster.session import local_capacity
from raygen.errors import ServiceError
from raygen.files import replacing


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True)

    gpus: int = Field(ge=0)
    cpus: int = Field(ge=1)
    all_users: bool = False


class Standing:
    """The file of a state folder that says so, while it is so."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "up.json"

    def holds(self) -> bool:
        """Whether the head stays when no job is left."""
        return self._path.exists()

    def asked_at(self) -> int:
        """When that was asked for, as a number that tells one time from another; 0 if it was not."""
        try:
            return self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def capacity(self) -> Capacity:
        """What a head is to have: all that this machine has, unless something else was asked for.

        Raises ServiceError if it cannot be read what that was.
        """
        asked = self._asked()
        if asked is None:
            return local_capacity()
        return Capacity.of_machine(gpus=asked.gpus, cpus=asked.cpus, where="this machine")

    def is_for_all(self) -> bool:
        """Whether everybody's jobs are started; not if it cannot be read, as `raygen up` says anew."""
        with suppress(ServiceError):
            asked = self._asked()
            return asked is not None and asked.all_users
        return False

    def begin(self, capacity: Capacity, *, all_users: bool = False) -> None:
        """Ask for it; raises ServiceError if that cannot be written down."""
        try:
            with replacing(self._path, writer=str(os.getpid())) as partial:
                asked = _Asked(gpus=capacity.gpus, cpus=capacity.cpus, all_users=all_users)
                partial.write_text(asked.model_dump_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise ServiceError(f"cannot write {self._path}: {error.strerror}") from error

    def end(self) -> None:
        """Ask for it no more."""
        self._path.unlink(missing_ok=True)

    def _asked(self) -> _Asked | None:
        try:
            return _Asked.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise ServiceError(
                f"cannot read in {self._path} which devices Ray is to have here; type `raygen up` again"
            ) from error
