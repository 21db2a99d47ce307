"""The same record twice: in a folder, and in a bucket of S3."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygen.record.documents import PaceRecord
from raygen.spec import TuneSpec
from raygen.storage import Storage
from tests.searches import add_trial, begin, best_facts, create
from tests.storage import servers


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of an S3 server."""
    with servers.moto() as address:
        yield address


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A prefix of its own in the bucket."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in servers.S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return Storage(f"s3://{servers.BUCKET}/{secrets.token_hex(4)}?endpoint={moto}")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    """A folder that nothing is in."""
    return Storage(tmp_path / "runs")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Storage:
    """Each kind of storage, never used before."""
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Storage)
    return made


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A search in its second attempt, with every kind of document, beside another run."""
    storage = Storage(tmp_path_factory.mktemp("runs"))
    spec = TuneSpec.search_over("ae", "ae", {"search.trials": 2, "search.replicates": 1})
    run = create(storage, spec, name="run")
    create(storage, spec, name="other")
    add_trial(begin(run), {"optimizer.lr": 0.1}, [0.5, 0.4])
    run.request(reopens=True, spec=spec.with_settings({"training.epochs": 40}))
    attempt = begin(run)
    pace = PaceRecord(epoch=1, step=3, steps=9, train_s=0.5, images_per_s=1e3)
    add_trial(attempt, {"optimizer.lr": 0.2}, [0.3, 0.1], pace=pace)
    attempt.change_trial(2, lambda progress: progress.model_copy(update={"pictures": {1: "run/picture"}}))
    facts = best_facts(trial=2, epoch=2, test={"images": 180, "metrics": {"test_mse": 0.1}})
    attempt.put_best([(facts, {"model.safetensors": b""})])
    attempt.set_status("finished")
    # The second start of the trial is the one that counts, and is put where the documents above say.
    newest = "run/attempts/0002/trials/002/0002.json"
    written = json.loads(storage.get(newest) or b"")
    written["judgement"] = {
        "epoch": 2,
        "validation": {"images": 180, "metrics": {"val_mse": 0.1}},
        "test": {"images": 180, "metrics": {"test_mse": 0.1}},
    }
    storage.delete([newest, "run/attempts/0002/trials/002/0001.json"])
    storage.put("run/attempts/0002/trials/002/0001.json", json.dumps(written).encode())
    return storage
