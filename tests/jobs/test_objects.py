"""Object stores and other filesystems: the same job, where nothing can be appended to or renamed."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import lance
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import s3fs

import embedreg
from embedreg.errors import ConfigError, HardcodedSecretError, StorageError
from embedreg.jobs import Job
from tests.jobs import children
from tests.jobs.children import Logged
from tests.jobs.conftest import texts
from tests.jobs.objects import Line, s3_server

OPTIONS: dict[str, Any] = {"piece_rows": 100, "batch_rows": 50}
KEY, SECRET = "the-key-of-the-test", "the-secret-of-the-test"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of an S3 server."""
    with s3_server() as port:
        yield port


def environment(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Set what an AWS client reads, for a server on loopback."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: int, monkeypatch: pytest.MonkeyPatch, dataset: Path) -> str:
    """Return the URI of a new bucket with the dataset, configured through the environment."""
    environment(monkeypatch, server)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    here().create_dir(name)
    pafs.copy_files(str(dataset), f"{name}/in", destination_filesystem=here())
    return f"s3://{name}"


def here() -> pafs.S3FileSystem:
    """The server that the environment names."""
    return pafs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")[0]


def table_at(address: str) -> pa.Table:
    """All rows of a dataset folder in a bucket."""
    return ds.dataset(address.removeprefix("s3://"), format="parquet", filesystem=here()).to_table()


def expected(dataset: Path) -> pa.Table:
    """What the job makes of the dataset."""
    return embedreg.embed_table(ds.dataset(dataset, format="parquet").to_table(), Logged().bind("text", "vector"))


def keys(address: str) -> list[str]:
    """Every key below an address, relative to it."""
    root = address.removeprefix("s3://")
    found = here().get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(each.path.removeprefix(f"{root}/") for each in found if each.type == pafs.FileType.File)


def test_a_bucket_gives_a_bucket(bucket: str, dataset: Path, tmp_path: Path) -> None:
    """A job from S3 to S3 is interrupted and gone on with: the same rows, one object a piece, nothing twice."""
    log = tmp_path / "log"
    declaration = Logged(log=str(log)).bind("text", "vector")
    with Job.open(f"{bucket}/in", f"{bucket}/out", declaration, **OPTIONS) as job:
        for piece in job.pending()[:3]:
            job.record(job.work.run(piece))
    report = embedreg.embed(f"{bucket}/in", f"{bucket}/out", declaration, **OPTIONS)
    assert (report.reused, report.pieces, report.rows) == (3, 7, 600)
    assert len(children.embedded(log)) == 600
    found = table_at(f"{bucket}/out")
    assert found.equals(expected(dataset))
    assert found.schema.metadata == expected(dataset).schema.metadata
    names = keys(f"{bucket}/out")
    assert [name for name in names if name.endswith(".parquet")] == [
        *(f"lang=de/a-0000{n}.parquet" for n in range(3)),
        "lang=de/b.parquet",
        *(f"lang=en/a-0000{n}.parquet" for n in range(3)),
    ]
    assert "_embedreg/manifest.json" in names
    assert not [name for name in names if name.startswith(("_embedreg/lock/", "_embedreg/tmp/"))]


@pytest.mark.parametrize("way", ["down", "up"])
def test_data_moves_between_a_bucket_and_this_machine(bucket: str, dataset: Path, tmp_path: Path, way: str) -> None:
    """Either end may be here: a folder, one file."""
    declaration = Logged().bind("text", "vector")
    if way == "down":
        embedreg.embed(f"{bucket}/in/**/*.parquet", tmp_path / "out", declaration, **OPTIONS)
        assert ds.dataset(tmp_path / "out", format="parquet").to_table().equals(expected(dataset))
    else:
        embedreg.embed(dataset, f"{bucket}/out.parquet", declaration, **OPTIONS)
        with here().open_input_file(f"{bucket[5:]}/out.parquet") as file:
            found = pq.read_table(file)
            assert found.drop_columns(["lang"]).cast(expected(dataset).schema).equals(expected(dataset))
            assert set(found.column("lang").to_pylist()) == {"de", "en"}  # of the source's folders
        assert [key for key in keys(bucket) if not key.startswith("in/")] == ["out.parquet"]
        with pytest.raises(StorageError, match="exists"):
            embedreg.embed(dataset, f"{bucket}/out.parquet", declaration, **OPTIONS)


def test_a_lance_table_lies_in_a_bucket(bucket: str, dataset: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """It appears in one version, whatever was interrupted, and is read like any source."""
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    table, declaration = f"{bucket}/db/out.lance", Logged().bind("text", "vector")
    with Job.open(f"{bucket}/in", table, declaration, **OPTIONS) as job:
        job.record(job.work.run(job.pending()[3]))
    report = embedreg.embed(f"{bucket}/in", table, declaration, **OPTIONS)
    assert (report.reused, report.rows) == (1, 600)
    made = lance.dataset(table)
    assert len(made.versions()) == 1
    assert made.to_table().drop_columns(["lang"]).equals(expected(dataset))
    assert not [key for key in keys(bucket) if ".embedreg/" in key]
    assert embedreg.embed(table, tmp_path / "back", **OPTIONS).given == 600
    with pytest.raises(StorageError, match="exists"):
        embedreg.embed(f"{bucket}/in", table, declaration, **OPTIONS)
    other = embedreg.get("hashing").create(dim=8).bind("text", "vector")
    assert embedreg.embed(f"{bucket}/in", table, other, force=True, **OPTIONS).embedded == 600
    assert lance.dataset(table).schema.field("vector").type.list_size == 8
    with pytest.raises(ConfigError, match="from the environment"):
        embedreg.embed(table, tmp_path / "no", declaration, storage_options={"region": "us-east-1"})


def test_an_object_that_was_replaced_is_done_again(bucket: str, tmp_path: Path) -> None:
    """The store's own version of the content decides: the same content put again is not embedded again."""
    log = tmp_path / "log"
    declaration = Logged(log=str(log)).bind("text", "vector")
    embedreg.embed(f"{bucket}/in", f"{bucket}/out", declaration, **OPTIONS)
    s3, path = here(), f"{bucket[5:]}/in/lang=de/b.parquet"
    with s3.open_input_file(path) as file:
        content = file.read()
    for put, again in ((content, 0), (None, 50)):
        with s3.open_output_stream(path) as stream:
            stream.write(put) if put else pq.write_table(texts(5000, 50), stream)
        before = len(children.embedded(log))
        embedreg.embed(f"{bucket}/in", f"{bucket}/out", declaration, **OPTIONS)
        assert len(children.embedded(log)) == before + again


@pytest.mark.slow
def test_a_network_that_is_lost_costs_one_piece(
    server: int, bucket: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the middle, the job ends with an error; with the line repaired it continues."""
    line, log = Line(server), tmp_path / "log"
    environment(monkeypatch, line.port)

    def cut(some: list[str]) -> None:
        if "text number 320" in some:
            line.cut()

    job = (f"{bucket}/in", f"{bucket}/out", Logged(log=str(log)).bind("text", "vector"))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Logged, "before", staticmethod(cut))
            with pytest.raises(StorageError) as caught:
                embedreg.embed(*job, **OPTIONS)
        assert "run the same command again" in str(caught.value)
        assert SECRET not in str(caught.value)
        line.mend()
        report = embedreg.embed(*job, **OPTIONS)
    finally:
        line.cut()
    environment(monkeypatch, server)
    assert report.reused >= 3
    assert len(children.embedded(log)) <= 700
    assert table_at(f"{bucket}/out").equals(expected(dataset))


def test_options_hold_references_and_travel_without_secrets(
    server: int, bucket: str, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are named, not given: what goes to a worker and what is written holds none, and it works there."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", SECRET)
    registry = embedreg.get_registry()
    registry.bind_env("s3_key", "MY_KEY")
    registry.bind_env("s3_secret", "MY_SECRET")
    options = {"endpoint_override": f"http://127.0.0.1:{server}", "region": "us-east-1"}
    references = {"access_key": "$var:s3_key", "secret_key": "$var:s3_secret"}
    job = (f"{bucket}/in", f"{bucket}/out", Logged().bind("text", "vector"))
    with pytest.raises(HardcodedSecretError, match="secret_key"):
        embedreg.embed(*job, storage_options={**options, "secret_key": SECRET})
    with Job.open(*job, storage_options={**options, **references}, **OPTIONS) as opened:
        travelling = pickle.dumps((opened.work, opened.pending()))
        assert SECRET.encode() not in travelling
        assert KEY.encode() not in travelling
        embedreg.security.references.variables.clear()  # as in another process, which has the environment
        work, pieces = pickle.loads(travelling)
        for piece in pieces:
            opened.record(work.run(piece))
        opened.finish()
    written = pafs.S3FileSystem(access_key=KEY, secret_key=SECRET, **options)
    for each in written.get_file_info(pafs.FileSelector(f"{bucket[5:]}/out/_embedreg", recursive=True)):
        if each.type == pafs.FileType.File:
            with written.open_input_file(each.path) as file:
                assert SECRET.encode() not in file.read()


def test_an_address_with_a_password_is_refused() -> None:
    """Addresses are written down and shown."""
    with pytest.raises(ConfigError, match="password") as caught:
        embedreg.embed(f"s3://{KEY}:{SECRET}@bucket/in", "out", Logged().bind("text", "vector"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", ["fsspec memory", "s3fs"])
def test_a_filesystem_of_fsspec_will_do(kind: str, server: int, bucket: str, dataset: Path) -> None:
    """An fsspec filesystem is passed as it is; it stays in this process."""
    if kind == "s3fs":
        files: Any = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{server}", key=KEY, secret=SECRET)
        root = bucket.removeprefix("s3://")
    else:
        files, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
        files.put(str(dataset), f"{root}/in", recursive=True)
    job = (f"{root}/in", f"{root}/out", Logged().bind("text", "vector"))
    with Job.open(*job, filesystem=files, **OPTIONS) as opened:
        opened.record(opened.work.run(opened.pending()[0]))
        with pytest.raises(ConfigError, match="cannot be sent to another process"):
            pickle.dumps(opened.work)
    report = embedreg.embed(*job, filesystem=files, **OPTIONS)
    assert (report.reused, report.rows) == (1, 600)
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(files))
    found = ds.dataset(f"{root}/out", format="parquet", filesystem=filesystem).to_table()
    assert found.equals(expected(dataset))


def test_an_address_of_fsspec_will_do(dataset: Path) -> None:
    """An address that only fsspec knows is opened by it."""
    root = f"/{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(dataset), f"{root}/in", recursive=True)
    report = embedreg.embed(f"memory:/{root}/in", f"memory:/{root}/out", Logged().bind("text", "vector"), **OPTIONS)
    assert report.rows == 600
    manifest = fsspec.filesystem("memory").cat(f"{root}/out/_embedreg/manifest.json")
    assert json.loads(manifest)["embedding_functions"][0]["name"] == "logged"


def test_an_address_that_nobody_knows_is_one_error() -> None:
    """A mistyped scheme is named."""
    with pytest.raises(StorageError, match="nosuch://"):
        embedreg.embed("nosuch://bucket/in", "out", Logged().bind("text", "vector"))


def test_a_bucket_that_is_not_there_is_one_error(bucket: str, dataset: Path) -> None:
    """Neither end is made out of nothing."""
    declaration = Logged().bind("text", "vector")
    with pytest.raises(StorageError, match="no such file"):
        embedreg.embed("s3://no-such-bucket/in", "out", declaration)
    with pytest.raises(StorageError, match="no-such-bucket"):
        embedreg.embed(dataset, "s3://no-such-bucket/out", declaration)
