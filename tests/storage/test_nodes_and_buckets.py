"""What the probe of nodes finds of a bucket, which each node opens with the credentials that it has itself."""

from __future__ import annotations

from typing import Any

import pytest

from raygen.cluster.node_check import Found, NodeFacts, problems
from raygen.cluster.probe import ASKED, try_storage
from raygen.storage import PROBE, Storage
from tests.storage import servers

PLACE = f"{PROBE}-of-a-test"


@pytest.fixture
def asked(place: Storage) -> Storage:
    """A storage in which the submitting machine has put what nodes are to find."""
    place.put(f"{PLACE}/{ASKED}", PLACE.encode())
    return place


def told(storage: Storage, facts: dict[str, Any]) -> str:
    """What is said of a node that has found this."""
    node = NodeFacts(address="10.0.0.1", python="3.12.4", **facts)
    return problems(Found(head="head", nodes={"head": node}), [], storage).get("head", "")


def test_a_node_that_reads_and_writes_passes(asked: Storage) -> None:
    found = try_storage(asked.url, PLACE)
    assert found == {"sees_storage": True}
    assert told(asked, found) == ""
    assert len(asked.list(PLACE)) == 2, "what was asked, and what the node has put"


def test_another_place_of_the_same_kind_is_not_taken_for_this_one(place: Storage) -> None:
    found = try_storage(place.url, PLACE)
    assert found == {"sees_storage": False}
    assert told(place, found)


def test_a_node_without_credentials_is_told_to_have_some() -> None:
    def refuses(handler: Any) -> tuple[int, bytes]:
        return 403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

    with servers.answering(refuses) as address:
        storage = Storage(f"s3://bucket/runs?endpoint={address}")
        line = told(storage, try_storage(storage.url, PLACE))
    assert line.startswith(f"it cannot read s3://bucket/runs/{PLACE}/{ASKED}: ")
    assert "hold credentials that may read and write in that storage, or give the node a role that may" in line
    assert servers.S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in line
    assert "\n" not in line
