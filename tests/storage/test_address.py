"""What may be written for a storage, and that nothing secret is ever repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raygen.errors import InputError
from raygen.files import UNPRINTABLE
from raygen.storage import Storage, default_storage

SECRET = "h1dden"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/runs//of/", "s3://bucket/runs/of"),
        ("gs://a_bucket.of-mine/Runs", "gs://a_bucket.of-mine/Runs"),
        ("az://container/runs?endpoint=HTTP://LocalHost:010/Account/", None),
        ("az://container/runs/?endpoint=http://localhost:10/Account/", None),
        ("s3://b/p?region=eu-central-1&endpoint=https%3A%2F%2Fminio.example", None),
        ("s3://b?endpoint=http://[::1]:9000", "s3://b?endpoint=http://[::1]:9000"),
        ("/runs/../all", "/runs/../all"),
        ("/runs?of=mine", "/runs?of=mine"),
        ("/c:/runs/me@home", "/c:/runs/me@home"),
    ],
)
def test_an_address_is_written_in_one_way(text: str, url: str | None) -> None:
    expected = {
        "az": "az://container/runs?endpoint=http://localhost:10/Account",
        "s3": "s3://b/p?endpoint=https://minio.example&region=eu-central-1",
    }
    storage = Storage(text)
    assert storage.url == (url or expected[text[:2]])
    assert Storage(storage.url) == storage
    assert (storage.folder is None) == (text[0] != "/")


def test_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Storage("runs").folder == tmp_path / "runs"
    assert Storage("C:\\runs").folder == tmp_path / "C:\\runs"
    assert Storage("~/runs").folder == tmp_path / "home/runs"
    assert Storage(tmp_path / "x?y").name == str(tmp_path / "x?y")
    monkeypatch.setenv("RAYGEN_STORAGE", "s3://bucket/x")
    assert default_storage() == "s3://bucket/x"


def test_what_is_shown_to_people_leaves_out_the_options() -> None:
    assert Storage("s3://bucket/runs?endpoint=http://127.0.0.1:9000").name == "s3://bucket/runs"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "write a folder, s3://BUCKET/PREFIX"),
        (" s3://bucket", "is not the address of a storage"),
        ("s3://", "is not the address of a storage"),
        ("s3:/bucket", "is not the address of a storage"),
        ("s3:bucket", "is not the address of a storage"),
        ("s3:///runs", "is not the address of a storage"),
        ("s3://bucket:9000/runs", "is not the address of a storage"),
        ("http://127.0.0.1:9000/bucket", "is not the address of a storage"),
        ("ftp://there/runs", "is not the address of a storage"),
        ("/runs\nof mine", "is not the address of a storage"),
        ("file:///runs", "write it without file://"),
        ("~nobody-of-that-name/runs", "there is no such user"),
        ("s3://bucket/a b", "a prefix is made of"),
        ("s3://bucket/../other", "a prefix is made of"),
        ("s3://bucket/a%20b", "a prefix is made of"),
        ("s3://bucket#x", "is not the address of a storage"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "not the address of a server"),
        ("s3://bucket?endpoint=", "not the address of a server"),
        ("s3://bucket?endpoint=http://a b", "not the address of a server"),
        ("s3://bucket?endpoint=http://127.0.0.1:99999", "not the address of a server"),
        ("s3://bucket?endpoint=http://127.0.0.1:0", "not the address of a server"),
        ("s3://bucket?endpoint=http://1.2.3.999", "not the address of a server"),
        ("s3://bucket?endpoint=http://[::z]", "not the address of a server"),
        ("s3://bucket?endpoint=http://a&endpoint=http://b", "takes endpoint= and region=, each once"),
        ("s3://bucket?endpont=http://a", "takes endpoint= and region="),
        ("s3://bucket?region=a/b", "not the name of a region"),
        ("az://container?region=eu", "takes endpoint="),
        ("gs://bucket?endpoint=http://a", "takes nothing"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        Storage(text)
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "s3://user:h1dden@bucket/runs",
        "s3://user:h1d/den-h1dden@bucket/runs",
        "s3://user:?h1dden@bucket",
        "s3:/user:h1dden@bucket",
        "S3://h1dden@bucket?endpoint=http://a",
        "https://user:h1dden@host/bucket",
        "s3://bucket?access_key=h1dden",
        "s3://bucket?h1dden",
        "s3://bucket?h1dden=1&endpoint=http://a",
        "s3://?secret=h1dden",
        "s3://bucket?endpoint=http://user:h1dden@host",
        "s3://bucket?endpoint=http://host/?token=h1dden",
        "s3://bucket?endpoint=h1dden",
        "s3://bucket?endpoint=http%3A%2F%2Fuser%3Ah1dden%40host",
        "s3://bucket?region=h1dden/1",
        "az://container?sv=2022&sig=h1dden%3D",
        " https://user:h1dden@host/bucket",
        "\ns3://bucket?sig=h1dden",
    ],
)
def test_a_credential_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Storage(text)
    assert SECRET not in str(caught.value)
    assert str(caught.value).isprintable()


TEXTS = st.text(st.sampled_from("s3gazf:/?&=@#%.~[]0 \\\n\x00\ud800éendpoint"), max_size=30)
ENDPOINTS = st.tuples(st.sampled_from(["http://", "https://", ""]), TEXTS).map("".join)
ADDRESSES = st.one_of(
    st.text(),
    TEXTS,
    st.tuples(st.sampled_from(["s3://", "S3://", "gs://", "az://", "http://", "~", "/", "file:///"]), TEXTS).map(
        "".join
    ),
    st.tuples(st.just("s3://bucket/"), TEXTS, st.just("?endpoint="), ENDPOINTS).map("".join),
)


@given(ADDRESSES)
@example("/")
@example("//a")
@example("~")
@example("~root")
def test_any_text_is_refused_in_one_line_or_is_an_address_that_means_itself(text: str) -> None:
    try:
        shown = url = Storage(text).url
    except InputError as error:
        shown, url = str(error), None
    assert not UNPRINTABLE.search(shown)
    if url is not None:
        assert Storage(url).url == url
        assert url.startswith(("/", "s3://", "gs://", "az://"))


@given(st.text(st.characters(categories=("L", "N", "P")), min_size=1), st.sampled_from(["s3", "gs", "az"]))
def test_nothing_before_an_at_sign_is_repeated(secret: str, scheme: str) -> None:
    secret = f"{SECRET}{secret}{SECRET}"
    with pytest.raises(InputError) as caught:
        Storage(f"{scheme}://user:{secret}@bucket/runs")
    assert SECRET not in str(caught.value)
