"""Declarations from strangers, however broken: an error of ours or an answer, soon, and nothing opened or called."""

import contextlib
import json
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg import get_registry
from embedreg.declaration import manifest
from embedreg.declaration.parquet_footer import write_metadata
from embedreg.errors import EmbedregError, StorageError
from embedreg.inspection.locate import functions_in_comments
from tests.timing import within
from tests.watched import nothing_touched

NAMES = [
    "hashing",
    "openai",
    "sentence-transformers",
    "open-clip",
    "embedreg:hashing",
    "nobody",
    None,
    "embedreg:embedreg:x",
]
LONGEST_S = 4  # seconds of this process for one example


def declared() -> bytes:
    """What embedreg writes for two columns."""
    hashing = embedreg.get("hashing").create(dim=4)
    found = get_registry().get_table_metadata([hashing.bind("text", "vector"), hashing.bind("text", "other")])
    assert found is not None
    return bytes(next(iter(found.values())))


GOOD = declared()
for each in NAMES[:4]:
    embedreg.get(str(each))  # imported once, outside of what is watched


def survive(work: Callable[[], Any], *files: Path) -> None:
    """Let some work answer, or raise an error of ours."""
    with within(LONGEST_S), nothing_touched(*files), contextlib.suppress(EmbedregError):
        work()


def read_all(found: dict[Any, Any]) -> None:
    """Read declarations in each way that runs no model."""
    for work in (embedreg.functions_in, embedreg.inspect, get_registry().parse_functions):
        with contextlib.suppress(EmbedregError):
            work(found)
    for config in embedreg.functions_in(found).values():
        with contextlib.suppress(EmbedregError):
            repr(config), hash(config.function), config.function.model_dump()


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """Return bytes that were valid before some of them were changed, dropped, doubled or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["set", "drop", "insert", "double", "cut"]))
        if how == "set" and data:
            data[at] = draw(st.sampled_from([*b'"{}[]:,\\0-e', 0, 127, 128, 255]) | st.integers(0, 255))
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            data[at:at] = draw(
                st.binary(min_size=1, max_size=9) | st.sampled_from([b"[" * 999, b'{"a":' * 99, b"9" * 99])
            )
        elif how == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        else:
            del data[at:]
    return bytes(data)


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [
            "$var:",
            "$var:x",
            "$var:x:$var:y",
            "a\0b",
            "\ud800",
            "/etc/passwd",
            "http://x/",
            "../x",
            "10.0.0.1",
            "x" * 300,
        ]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(
    sorted(
        {name for each in NAMES[:4] for name in embedreg.get(str(each)).model_fields}
        | {"embedreg", "nobody", "", "__class__"}
    )
)
reserved = st.dictionaries(
    st.sampled_from(
        [
            "format",
            "ndims",
            "dtype",
            "normalized",
            "metric",
            "prompts",
            "fingerprint",
            "identity",
            "producer",
            "probe",
            "vectors",
            "digest",
            "template",
            "quantization",
        ]
    ),
    odd,
)
entry = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES) | odd,
        "model": st.dictionaries(fields, odd, max_size=5) | st.builds(lambda r: {"embedreg": r}, reserved) | odd,
    },
    optional={
        "source_column": st.just("text") | odd,
        "vector_column": odd,
        "vectorColumn": odd,
        "sourceColumn": st.just("text") | odd,
        "x": odd,
    },
)


@given(st.lists(entry, max_size=3))
@example([{"name": "sentence-transformers", "model": {"revision": "a\0b"}, "source_column": "text"}])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_entries_of_any_values(entries: list[Any]) -> None:
    """Odd types in every place: names, columns, each field of the built-ins, each key that is recorded."""
    text = json.dumps(entries)
    survive(lambda: read_all({"embedding_functions": text}))
    survive(lambda: functions_in_comments([f"words embedding_functions={text}"]))


@given(mutated(GOOD))
@settings(max_examples=150, deadline=None)
def test_mutated_metadata(data: bytes) -> None:
    """In schema metadata as bytes and as text, in comments, in a manifest."""
    survive(lambda: read_all({b"embedding_functions": data}))
    survive(lambda: read_all({"embedding_functions": data.decode("latin-1")}))
    survive(lambda: functions_in_comments([None, "", f"embedding_functions={data.decode('utf-8', 'surrogateescape')}"]))
    survive(lambda: manifest.declaration(b'{"embedding_functions": ' + data + b"}"))


@given(mutated(manifest.content(GOOD)))
@settings(max_examples=200, deadline=None)
def test_mutated_manifests(data: bytes) -> None:
    """The result equals that of `json`, or it is an error."""

    def read() -> None:
        text = manifest.declaration(data)
        assert json.loads(text) == json.loads(data)["embedding_functions"]

    survive(read)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file with a declaration."""
    path = tmp_path_factory.mktemp("hostile") / "data.parquet"
    vectors = pa.array([[1.0, 2, 3, 4]], pa.list_(pa.float32(), 4))
    table = pa.table({"text": ["a"], "vector": vectors, "other": vectors})
    pq.write_table(table.replace_schema_metadata({b"embedding_functions": GOOD}), path)
    return path


def _split(path: Path) -> tuple[bytes, bytes]:
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    return whole[:start], whole[start:-8]


@given(st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_mutated_footers(parquet: Path, data: st.DataObject) -> None:
    """Read, and rewritten; a file that cannot be rewritten is as it was."""
    start, footer = _split(parquet)
    made = data.draw(mutated(footer))
    length = data.draw(st.just(len(made)) | st.integers(0, 2**32 - 1))
    path = parquet.parent / "mutated.parquet"
    path.write_bytes(start + made + length.to_bytes(4, "little") + b"PAR1")
    before = path.read_bytes()
    survive(lambda: embedreg.inspect(path), path)
    try:
        write_metadata(path, {b"embedding_functions": GOOD})
    except StorageError:
        assert path.read_bytes() == before


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_arrow_files(parquet: Path, data: st.DataObject) -> None:
    """Files and streams."""
    table = pq.read_table(parquet)
    sink = pa.BufferOutputStream()
    make = data.draw(st.sampled_from([pa.ipc.new_file, pa.ipc.new_stream]))
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    path = parquet.parent / "mutated.arrow"
    path.write_bytes(data.draw(mutated(sink.getvalue().to_pybytes())))
    survive(lambda: embedreg.inspect(path), path)


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        b"\0",
        b"\x19" * 100_000,  # lists in lists
        b"\x5c" + b"\x1c" * 100_000,  # structures in structures
        b"\x59\x1c\x18\x01a\0\0",  # a pair with a value alone
        b"\x59\xfc\xff\xff\xff\xff\x7f",  # billions of pairs
        b"\x59\xf1" + b"\xff" * 9 + b"\x01",
        b"\x58" + b"\xff" * 9 + b"\x01",
        b"\x5b\x01",
        b"\xff" * 1000,
        b"\x59\x1c\x18\x0cARROW:schema\x18\x04AAAA\0\0",
        b"\x59\x1c\x18\x0cARROW:schema\x18\x04!!!!\0\0",
    ],
    ids=range(12),
)
def test_invalid_footers(tmp_path: Path, footer: bytes) -> None:
    """Deep, endless, without keys, with an invalid Arrow schema: an error of ours, and the file as it was."""
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    before = path.read_bytes()
    with within(LONGEST_S), contextlib.suppress(EmbedregError):
        write_metadata(path, {b"a": b"b"})
        before = path.read_bytes()  # a structure without fields is one that pairs can be added to
    assert path.read_bytes() == before
    survive(lambda: embedreg.inspect(path), path)


@pytest.mark.parametrize(
    "found",
    [
        1,
        [],
        "x",
        {1: 2},
        {b"embedding_functions": 1},
        {"embedding_functions": ["x"]},
        {"embedding_functions": "\ud800"},
    ],
)
def test_values_that_are_not_metadata(found: Any) -> None:
    """Other types where a mapping of texts is wanted."""
    for work in (get_registry().parse_functions, embedreg.functions_in, embedreg.inspect):
        survive(lambda work=work: work(found))  # type: ignore[misc]


def test_the_watch_detects_forbidden_actions(tmp_path: Path) -> None:
    """A file, a socket, a process, a removal."""
    path = tmp_path / "x"
    path.touch()
    for work in (
        path.read_bytes,
        lambda: socket.socket().close(),
        lambda: subprocess.run(["true"], check=False),
        path.unlink,
    ):
        with pytest.raises(AssertionError), nothing_touched():
            work()
