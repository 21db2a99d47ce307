"""Why a storage refused, in one line that tells what to do: no XML, no request ids, nothing secret."""

from __future__ import annotations

import errno
import re

ANOTHER = "name another storage (--storage, RAYGEN_STORAGE)"

FULL = f"free some space there or {ANOTHER}"
"""How the reason ends of a storage that has no room left."""

NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified (?:bucket|container) does not exist", re.IGNORECASE)
NO_CREDENTIALS = re.compile(
    r"latest/api/token|latest/meta-data/iam|metadata\.google|performing token request"
    r"|Missing (?:AccessKeyId|SecretAccessKey)|Account must be specified"
)
OTHER_REGION = re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|Received redirect without LOCATION")

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with raygen[aws]",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""What gives each kind of bucket credentials, unless the machine has a role."""


def is_without_bucket(error: Exception) -> bool:
    """Whether the bucket itself is not there."""
    return NO_BUCKET.search(_told(error)[0]) is not None


def tells_full(text: str) -> bool:
    """Whether a text repeats that a storage has no room left."""
    return FULL in text


def of_folder(error: Exception) -> str:
    """Why a folder refused."""
    assert isinstance(error, OSError)
    text = error.strerror or str(error)
    return f"{text}; {FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else ANOTHER}"


def of_bucket(error: Exception, *, scheme: str, bucket: str, server: str) -> str:
    """Why a bucket refused, from what obstore says of it."""
    told, details = _told(error)
    if NO_BUCKET.search(told):
        return f"there is no {'container' if scheme == 'az' else 'bucket'} {bucket}; make it or {ANOTHER}"
    if found := re.search(r"credential provider: \w+: (.*)", told):
        return f"no credentials: {found[1]}"
    if NO_CREDENTIALS.search(told):
        return f"this machine has no credentials for it; set {CREDENTIALS[scheme]}"
    if OTHER_REGION.search(told):
        return "the bucket is in another region; add ?region= to its address, or set AWS_REGION"
    if found := re.search(r"status code: (\d{3})(?: ([A-Za-z -]+))?", told):
        return _answered(found[1], found[2], re.search(r"<Code>(\w+)</Code>", told), server)
    return _unanswered(told, details, server)


def _answered(status: str, words: str | None, code: re.Match[str] | None, server: str) -> str:
    said = code[1] if code else f"{status} {words or ''}".strip()
    if status in ("401", "403"):
        return f"access denied ({said}); check this machine's credentials and what they may do"
    if status == "507":
        return f"{server} has no room left ({said}); {FULL}"
    if status == "501":
        return f"{server} cannot do this ({said}); runs need a server that honours If-None-Match"
    return f"{server} answers {said}"


def _unanswered(told: str, details: str, server: str) -> str:
    if "kind: Timeout" in details:
        return f"{server} has stopped answering; try again"
    if "kind: Connect" in details:
        return f"{server} does not answer ({_cause(details)}); is it started, and its address right?"
    if "HTTP error" in told:
        return f"the connection to {server} broke; try again"
    return re.sub(r"^Generic \w+ error: |https?://\S+", "", told.partition("\n")[0])


def _cause(details: str) -> str:
    if "dns error" in details:
        return "its name is not known"
    if "InvalidContentType" in details:
        return "it does not speak https"
    if "ertificate" in details:
        return "its certificate is not trusted"
    found = re.search(r'message: "([^"]+)"', details)
    return found[1] if found else "no connection"


def _told(error: Exception) -> tuple[str, str]:
    """What an error says, and what obstore writes below it for programmers."""
    told, _, details = str(error).partition("\nDebug source:")
    return told.strip(), details
