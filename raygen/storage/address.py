"""What a person writes for a storage: a folder, or s3://BUCKET/PREFIX and its like, with no credentials in it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from raygen.errors import InputError
from raygen.files import UNPRINTABLE, printable

OPTIONS = {"s3": ("endpoint", "region"), "gs": (), "az": ("endpoint",)}
"""What may follow a "?" in the address of each kind of bucket."""

HELP = "write a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"

OWN_CREDENTIALS = "each machine uses credentials of its own, from its environment or role"

URL = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]+):/|({'|'.join(OPTIONS)}):", re.IGNORECASE)
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PREFIX = re.compile(r"[\w.=+,:&$()'!~-]+")
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
ENDPOINT = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{LABEL}(?:\.{LABEL})*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{{1,5}}))?"
    r"(?P<path>(?:/[A-Za-z0-9._-]+)*)/?",
    re.IGNORECASE,
)
REGION = re.compile(r"[A-Za-z0-9-]+")


@dataclass(frozen=True)
class Address:
    """Where a storage is; `url` is the one way to write it, the same for every way that a person may have chosen."""

    url: str
    name: str
    """The address without its options, for people."""
    folder: Path | None = None
    scheme: str = ""
    bucket: str = ""
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None


def parsed(text: str) -> Address:
    """The address in a text; raises InputError in one line, which repeats nothing that may be a credential."""
    if not text or text != text.strip() or UNPRINTABLE.search(text):
        raise InputError(f"{_shown(text)!r} is not the address of a storage: {HELP}")
    found = URL.match(text)
    return _folder(text) if found is None else _bucket(text, (found[1] or found[2]).lower())


def checked_endpoint(text: str, name: str) -> str:
    """The address of a server, written in one way; raises InputError naming what held it, and not the text itself."""
    found = ENDPOINT.fullmatch(text)
    if found is None or not _is_host(found["host"]) or not 0 < int(found["port"] or 80) < 65536:
        raise InputError(
            f"{name} is not the address of a server: write one such as http://127.0.0.1:9000 ({OWN_CREDENTIALS})"
        )
    port = f":{int(found['port'])}" if found["port"] else ""
    return f"{found['scheme'].lower()}://{found['host'].lower()}{port}{found['path']}"


def _folder(text: str) -> Address:
    try:
        folder = Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{text}: there is no such user; {HELP}") from error
    return Address(str(folder), str(folder), folder)


def _bucket(text: str, scheme: str) -> Address:
    if "@" in text:
        raise InputError(f"{scheme}://…: an address holds no '@' and no credentials: {OWN_CREDENTIALS}")
    if scheme == "file":
        raise InputError(f"{_shown(text)} is a folder: write it without file://")
    place, _, query = text.partition("?")
    bucket, _, path = place[len(scheme) + 1 :].removeprefix("//").partition("/")
    names = [name for name in path.split("/") if name]
    if scheme not in OPTIONS or not place[len(scheme) :].startswith("://") or not BUCKET.fullmatch(bucket):
        raise InputError(f"{_shown(text)} is not the address of a storage: {HELP}")
    if not all(PREFIX.fullmatch(name) and name not in (".", "..") for name in names):
        raise InputError(f"{_shown(text)}: a prefix is made of names with letters, digits and any of .=+,:&$()'!~-_")
    name = f"{scheme}://{'/'.join([bucket, *names])}"
    options = _options(name, scheme, query)
    url = name + ("?" if options else "") + "&".join(f"{key}={value}" for key, value in sorted(options.items()))
    return Address(url, name, None, scheme, bucket, "/".join(names), options.get("endpoint"), options.get("region"))


def _options(name: str, scheme: str, query: str) -> dict[str, str]:
    """What follows the "?"; what is no option is not repeated, as it may be a credential."""
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    if len(options) < len(given) or not set(options) <= set(OPTIONS[scheme]):
        allowed = " and ".join(f"{option}=" for option in OPTIONS[scheme]) or "nothing"
        raise InputError(f"{name}: after '?' {scheme}:// takes {allowed}, each once: {OWN_CREDENTIALS}")
    if "endpoint" in options:
        options["endpoint"] = checked_endpoint(options["endpoint"], f"{name}: ?endpoint=")
    if "region" in options and not REGION.fullmatch(options["region"]):
        raise InputError(f"{name}: ?region= is not the name of a region: write one such as eu-central-1")
    return options


def _is_host(host: str) -> bool:
    """Whether what looks like numbers is the address that it looks like."""
    if host[0] != "[" and not host.rpartition(".")[2][0].isdigit():
        return True
    try:
        return bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _shown(text: str) -> str:
    """As much of an address as can hold no credential."""
    if "://" in text and "@" in text:
        return printable(text.partition("://")[0]) + "://…"
    return printable(text.partition("?")[0]) if URL.match(text.strip()) else printable(text)
