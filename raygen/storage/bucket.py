"""A storage in a bucket of S3, Google Cloud Storage or Azure, through obstore's synchronous API."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen.errors import StorageError
from raygen.storage import reason
from raygen.storage.address import Address, checked_endpoint
from raygen.storage.entry import Entry

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

SERVICES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure"}

ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": (),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""What names another server than the cloud's own on a machine, if the address does not."""

CONNECT_TIMEOUT_S = 5
STALL_TIMEOUT_S = 30
"""How long a request may bring nothing; how long it may take in all depends on how much it brings."""

RETRIES = 10
RETRIES_TIMEOUT_S = 20
LONGEST_PAUSE_S = 2
"""Requests that fail are repeated within this time: who meets a storage that is away hears so within a minute."""

PART_BYTES = 5 * 1024**2
PARTS_AT_ONCE = 4
"""Each part of a large content must arrive within STALL_TIMEOUT_S: four at once can on 6 Mbit/s."""

PROFILE_TTL = timedelta(minutes=10)
"""How long credentials of a profile are used: botocore renews them ten minutes before they expire."""

_process: int | None = None
"""The process in which obstore's threads were started."""


class Bucket:
    """The keys below a prefix of a bucket; what the server refuses is one of `errors`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._is_there = False

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What obstore raises."""
        from obstore.exceptions import BaseError

        return OSError, BaseError

    def reason(self, error: Exception) -> str:
        """Why the server refused."""
        server = _endpoint(self.address) or SERVICES[self.address.scheme]
        return reason.of_bucket(error, scheme=self.address.scheme, bucket=self.address.bucket, server=server)

    def create(self, key: str, content: bytes) -> bool:
        """Write a content unless there is one."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def put(self, key: str, content: bytes | Path) -> None:
        """Write a content, or that of a file, in the place of any other."""
        import obstore

        obstore.put(self._store, key, content, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

    def get(self, key: str, start: int) -> bytes | None:
        """The content from byte `start` on, None if there is none."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            return bytes(obstore.get(self._store, key, options={"range": {"offset": start}} if start else {}).bytes())
        except FileNotFoundError as error:
            if reason.is_without_bucket(error):
                raise
            return None
        except BaseError:
            # A range that begins at the end is refused, each server in words of its own.
            if start and (entry := self.entry(key)) and entry.size_bytes <= start:
                return b""
            raise

    def entry(self, key: str) -> Entry | None:
        """What a listing would tell of the key."""
        import obstore

        try:
            return _entry(obstore.head(self._store, key))
        except FileNotFoundError:
            self._check_there()
            return None

    def children(self, prefix: str) -> list[str]:
        """The names that keys below a prefix go on with, in any order."""
        import obstore

        found = obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"]
        return [each.rstrip("/").rpartition("/")[2] for each in found]

    def partials(self, prefix: str) -> list[Entry]:
        """Nothing: a bucket shows contents that are whole alone."""
        return []

    def list(self, prefix: str) -> list[Entry]:
        """All keys below a prefix, in any order."""
        import obstore

        return [_entry(each) for each in obstore.list(self._store, prefix or None).collect()]

    def delete(self, keys: Iterable[str]) -> None:
        """Remove contents."""
        import obstore

        keys = [*keys]
        try:
            obstore.delete(self._store, keys)
        except FileNotFoundError as error:
            if reason.is_without_bucket(error):
                raise
            for key in keys:  # Azure stops at the first that is not there
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, key)

    def delete_all(self, prefix: str) -> None:
        """Remove everything below a prefix."""
        self.delete(entry.key for entry in self.list(prefix))

    def _check_there(self) -> None:
        """Asked once: that a key is not there is answered in the same way by a bucket that is not."""
        if not self._is_there:
            self.list(".raygen-nothing")
            self._is_there = True

    @property
    def _store(self) -> ObjectStore:
        global _process
        _process = _process or os.getpid()
        if _process != os.getpid():
            # The threads that carry requests do not live on in a fork, which would wait for them for ever.
            raise StorageError("this process is a fork of one that uses buckets itself; start it by spawning")
        return self._made

    @cached_property
    def _made(self) -> ObjectStore:
        """The client, made at the first use: processes may be forked until then."""
        from obstore.store import AzureStore, GCSStore, S3Store

        address, endpoint = self.address, _endpoint(self.address)
        options: dict[str, Any] = {
            "prefix": address.prefix or None,
            "client_options": {
                "allow_http": (endpoint or "").startswith("http://"),
                "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
                "read_timeout": f"{STALL_TIMEOUT_S}s",
                "timeout": "1day",
            },
            "retry_config": {
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=RETRIES_TIMEOUT_S),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=LONGEST_PAUSE_S),
                    "base": 2,
                },
            },
        }
        if endpoint:
            options["endpoint"] = endpoint
        if address.scheme == "az":
            return AzureStore(address.bucket, **options)
        if address.scheme == "gs":
            return GCSStore(address.bucket, **options)
        if address.region:
            options["region"] = address.region
        return S3Store(address.bucket, **options, **_aws_profile())


def _endpoint(address: Address) -> str | None:
    if address.endpoint:
        return address.endpoint
    for variable in ENDPOINT_VARIABLES[address.scheme]:
        if text := os.environ.get(variable):
            return checked_endpoint(text, variable)
    return None


def _aws_profile() -> dict[str, Any]:
    """The credentials of the AWS profile that is chosen, which obstore does not read by itself."""
    if "AWS_PROFILE" not in os.environ or "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    if importlib.util.find_spec("boto3") is None:
        raise StorageError("AWS_PROFILE needs boto3; type: pip install 'raygen[aws]'")
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return {"credential_provider": Boto3CredentialProvider(ttl=PROFILE_TTL)}
    except (BotoCoreError, ValueError) as error:  # ValueError: the profile holds no credentials
        raise StorageError(
            f"AWS_PROFILE names no profile with credentials on this machine ({' '.join(str(error).split())})"
        ) from None


def _entry(found: ObjectMeta) -> Entry:
    version = found["e_tag"] or f"{found['last_modified'].timestamp()}-{found['size']}"
    return Entry(found["path"], found["size"], version.strip('"'))  # Azure's listings leave the quotes out
