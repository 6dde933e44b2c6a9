"""A path on object storage is distinguished from a folder, and answers as pathlib's would."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.store.objects import verbs as objects
from pipeline.store.objects.paths import ObjectPath, RemoteError, forget_clients, store_path
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.run.file import parse_run_file
from tests.fixtures.s3 import FaultyS3, status


def test_a_folder_is_a_path_and_a_url_an_object_path() -> None:
    assert store_path("out/demo") == Path("out/demo")
    assert store_path("C:/lake") == Path("C:/lake")
    assert store_path("s3://bucket/a/b/") == ObjectPath("s3://bucket/a/b")
    for url in ("gs://b", "az://container/x", "abfss://c@account.dfs.core.windows.net/x", "memory://m"):
        assert str(store_path(url)) == url
    path = ObjectPath("s3://bucket/a")
    assert store_path(path) is path


@pytest.mark.parametrize("text", ["ftp://host/x", "file:///x", "S3://bucket", "hdfs://x/y"])
def test_an_unknown_scheme_names_the_known_ones(text: str) -> None:
    with pytest.raises(InputError, match=r"known: s3, s3a, gs, az, .*memory"):
        store_path(text)


@pytest.mark.parametrize(
    "text", ["s3:/bucket/x", "s3:///x", "s3://", "s3://b/a b", "s3://b/../c", "s3://b/x?y=1", "s3://b//c"]
)
def test_a_url_without_a_bucket_or_with_odd_characters_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write s3://BUCKET/PREFIX"):
        store_path(text)


def test_paths_join_split_compare_and_travel() -> None:
    path = store_path("s3://bucket/a") / "tables" / "site" / "features.parquet"
    assert str(path) == "s3://bucket/a/tables/site/features.parquet"
    assert (path.name, path.stem, path.suffix) == ("features.parquet", "features", ".parquet")
    assert path.parent.parent / "site" / path.name == path
    assert path.parent.parent.parent.parent == store_path("s3://bucket/a")
    assert (store_path("memory://m") / "a." / "b").parent == store_path("memory://m") / "a."
    assert pickle.loads(pickle.dumps(path)) == path
    assert len({path, pickle.loads(pickle.dumps(path)), path.parent}) == 2


def test_errors_travel_between_processes() -> None:
    error = RemoteError(5, "object storage failed (SlowDown)", "s3://bucket/a")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.filename) == (str(error), "s3://bucket/a")


def test_names_below_the_root_are_checked() -> None:
    layout = Layout(store_path("s3://bucket/a"))
    with pytest.raises(InputError, match="shard"):
        layout.tokens("../x")


def check_reading(root: StorePath) -> None:
    """What both kinds of object storage must answer."""
    assert not root.exists()
    assert list(root.iterdir()) == []
    objects.write_atomic(root / "folder" / "a.txt", b"one")
    objects.write_atomic(root / "folder" / "deep" / "b", b"")
    objects.write_atomic(root / "folder2", b"beside")
    folder = root / "folder"
    assert folder.exists()
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "a.txt").is_file()
    assert not (folder / "a.txt").is_dir()
    assert not (folder / "a").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "deep"]
    assert sorted(path.name for path in root.iterdir()) == ["folder", "folder2"]
    assert (folder / "a.txt").read_bytes() == b"one"
    assert (folder / "deep" / "b").read_bytes() == b""
    with pytest.raises(FileNotFoundError, match="folder/none"):
        (folder / "none").read_bytes()


def test_memory_answers_as_a_folder_would(request: pytest.FixtureRequest) -> None:
    check_reading(store_path(f"memory://{request.node.name}"))


def test_s3_answers_as_a_folder_would(s3: FaultyS3) -> None:
    check_reading(store_path("s3://lake/reading"))


def test_two_memories_share_nothing() -> None:
    objects.write_atomic(store_path("memory://one") / "a", b"x")
    assert not (store_path("memory://two") / "a").exists()


def test_large_objects_are_read_in_several_requests(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.objects.paths._ONE_READ", 1000)
    path = store_path("s3://lake/large") / "x"
    data = bytes(range(256)) * 10
    objects.write_atomic(path, data)
    assert path.read_bytes() == data
    assert s3.count("GET", "/x") == 4  # one that says how large it is, and three parts


def test_a_bucket_that_is_missing_or_forbidden_is_a_sentence(s3: FaultyS3) -> None:
    with pytest.raises(InputError, match=r"s3://nowhere/a/x is in a bucket that does not exist"):
        objects.write_atomic(store_path("s3://nowhere/a") / "x", b"")
    with pytest.raises(InputError, match="bucket that does not exist"):
        objects.self_test(store_path("s3://nowhere/a"))
    s3.fail("GET", "/secret", lambda request: request.answer(403, [], b"<Code>AccessDenied</Code>") or True)
    with pytest.raises(InputError, match=r"is forbidden \(AccessDenied\): check the credentials"):
        (store_path("s3://lake/a") / "secret").read_bytes()


def test_no_credentials_and_a_wrong_endpoint_are_sentences(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.fail(
        "GET", "/x", lambda request: request.answer(400, [], b"<Code>AuthorizationMalformed</Code>") or True
    )
    with pytest.raises(
        InputError, match=r"lake/a/x: object storage refuses \(AuthorizationMalformed\).*AWS_REGION"
    ):
        (store_path("s3://lake/a") / "x").read_bytes()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3.fail("PUT", "/latest/api/token", status(403))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{s3.port}")
    forget_clients()
    with pytest.raises(InputError, match=r"lake/a/x.*AWS_"):
        (store_path("s3://lake/a") / "x").read_bytes()


def test_an_account_that_is_not_named_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InputError, match=r"az://container/x.*AZURE_\*"):
        (store_path("az://container/x") / "a").read_bytes()


@pytest.mark.parametrize("url", ["s3://user:secret@bucket/x", "s3://secret@bucket", "gs://a:se/cret@b/x"])
def test_a_url_with_credentials_is_refused_and_they_are_not_repeated(url):
    with pytest.raises(InputError, match=r"://\*\*\*@b.* holds a user, a password or a signature") as message:
        store_path(url)
    assert "cret" not in str(message.value)
    with pytest.raises(
        InputError, match=r"store\.root is .*://\*\*\*@b.*: holds a user, a password"
    ) as message:
        parse_run_file({"store": {"root": url}, "corpus": {"path": "c"}}, "run.yaml")
    assert "cret" not in str(message.value)
