"""Flight messages with any damage: a batch within the limits whose rows can be read, or an error of ours."""

from __future__ import annotations

import os
import struct
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedreg.engines.databend import Limits
from embedreg.engines.databend.wire import Incoming, _as_bytes
from embedreg.errors import InputError
from tests.engines.databend_hostile import column, descriptor, flight_data, messages

LIMITS = Limits(max_rows=1000, max_expanded_bytes=2**20)
TEXTS = st.lists(st.none() | st.text(max_size=20) | st.just("long " * 40), max_size=40)
KINDS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string()))
NUMBERS = st.sampled_from(
    [-(2**63), -(2**31), -2, -1, 0, 1, 7, 64, 1001, 2**20 + 1, 2**31 - 1, 2**31, 2**40, 2**63 - 1]
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Draw the messages of a call, and what is done to them."""
    kind = draw(st.sampled_from(KINDS))
    batches = [column(pa.array(draw(TEXTS), kind)) for _ in range(draw(st.integers(1, 2)))]
    options: dict[str, Any] = {"compression": draw(st.sampled_from([None, "zstd", "lz4"]))}
    parts = [[bytearray(header), bytearray(body)] for header, body in messages(batches, **options)]
    for _ in range(draw(st.integers(0, 3))):
        part = draw(st.sampled_from(parts))
        data = draw(st.sampled_from(part))
        what = draw(st.sampled_from(["number", "number", "bytes", "cut", "twice", "gone", "rows"]))
        if what == "number" and len(data) >= 8:  # lengths, offsets, counts: 64 bits in a header, 32 among the offsets
            width = draw(st.sampled_from([4, 8]))
            at = draw(st.integers(0, len(data) // width - 1)) * width
            data[at : at + width] = (draw(NUMBERS) % 256**width).to_bytes(width, "little")
        elif what == "bytes":
            at = draw(st.integers(0, max(0, len(data) - 1)))
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif what == "cut":
            del data[draw(st.integers(0, len(data))) :]
        elif what == "twice":
            parts.insert(draw(st.integers(0, len(parts))), part)
        elif what == "gone" and len(parts) > 1:
            parts.remove(part)
        elif what == "rows":
            old = struct.pack("<q", draw(st.sampled_from([len(batch) for batch in batches])))
            part[0] = bytearray(bytes(part[0]).replace(old, struct.pack("<q", draw(NUMBERS))))
    made = [flight_data(bytes(header), bytes(body), descriptor("f")) for header, body in parts]
    if draw(st.integers(0, 4)) == 0:
        made.insert(draw(st.integers(0, len(made))), draw(st.binary(max_size=60)))
    return made


@settings(
    max_examples=int(os.environ.get("EMBEDREG_EXAMPLES", "400")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(parts=streams())
def test_any_stream_is_read_within_the_limits_or_refused(parts: list[bytes]) -> None:
    """Rows, bytes and what is kept stay below the limits, and every row of a batch can be read."""
    incoming = Incoming(LIMITS)
    before = pa.default_memory_pool().bytes_allocated()
    for message in parts:
        try:
            seen = incoming.check(message)
            assert 0 <= seen.rows <= LIMITS.max_rows  # before anything is decoded
            assert incoming.kept <= 4 * LIMITS.max_expanded_bytes
            if seen.kind != "batch":
                continue
            batch = incoming.batch(message)
        except InputError:
            return  # which ends the call
        assert batch.num_rows == seen.rows
        assert pa.default_memory_pool().bytes_allocated() - before <= seen.cost + incoming.kept + 2**16
        for values in batch.columns:
            assert len(_as_bytes(values).to_pylist()) == batch.num_rows
