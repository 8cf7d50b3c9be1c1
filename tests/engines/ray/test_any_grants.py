"""What a driver grants holds on a worker while the worker works for that driver's payload, and no longer."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import embedreg
from embedreg.engines.ray.worker import Payload, granted
from embedreg.errors import Grant
from embedreg.media.allowances import ImagePolicy, current_policy
from embedreg.security import grants

HELD = ("paths", "hosts", "variables", "remote_code", "fields")
SOME = {
    "paths": ["/srv/a", "/srv/b/c", "/"],
    "hosts": ["a.example", "https://b.example", "127.0.0.1:80"],
    "variables": ["k", "other"],
    "remote_code": ["owner/model", "owner/model@main"],
    "fields": ["openai.headers", "x.timeout_s"],
}
GRANTS = st.builds(
    Grant, **{name: st.lists(st.sampled_from(SOME[name]), unique=True, max_size=2).map(tuple) for name in HELD}
)
PAYLOADS = st.builds(
    Payload,
    st.just(b""),
    GRANTS,
    st.builds(
        ImagePolicy,
        dirs=st.lists(st.sampled_from(["/srv/pictures", "/tmp"]), unique=True).map(tuple),
        hosts=st.lists(st.sampled_from(["pictures.example"]), unique=True).map(tuple),
    ),
    st.just("/"),
    st.just(()),
)


def force() -> tuple[Any, Any]:
    """Return what this process grants now."""
    return grants.in_force(), current_policy()


@given(
    own=GRANTS,
    blocks=st.lists(st.tuples(PAYLOADS, st.sampled_from(["ends", "fails", "revokes all", "inside"])), max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_a_payloads_grants_end_with_its_work(own: Grant, blocks: list[tuple[Payload, str]]) -> None:
    """One after another, within one another, failing or not: before and after, the worker has its own grants only."""
    with embedreg.trust(own):
        before = force()
        with contextlib.ExitStack() as open_blocks:
            for payload, how in blocks:
                now = force()
                with contextlib.suppress(KeyError), granted(payload):
                    held, images = force()
                    assert all(set(getattr(payload.grants, name)) <= set(getattr(held, name)) for name in HELD)
                    assert all(set(getattr(own, name)) <= set(getattr(held, name)) for name in HELD)
                    assert {*payload.images.dirs} <= {*images.dirs}
                    if how == "fails":
                        raise KeyError
                    if how == "revokes all":
                        embedreg.trust(paths=["/srv/z"]).revoke()
                assert force() == now
                if how == "inside":
                    open_blocks.enter_context(granted(payload))
        assert force() == before


@given(st.lists(PAYLOADS, min_size=2, max_size=4), st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_threads_end_their_own_grants(payloads: list[Payload], order: list[int]) -> None:
    """Blocks of several threads end in any order; each one's grants hold until its own block ends."""
    before = force()
    ends = [threading.Event() for _ in payloads]
    begun = threading.Barrier(len(payloads) + 1)

    def work(number: int) -> None:
        with granted(payloads[number]):
            begun.wait(10)
            ends[number].wait(10)

    threads = [threading.Thread(target=work, args=[number]) for number in range(len(payloads))]
    for thread in threads:
        thread.start()
    begun.wait(10)
    left = set(range(len(payloads)))
    for number in [number for number in order if number < len(payloads)]:
        held = grants.in_force()
        for each in left:
            assert all(set(getattr(payloads[each].grants, name)) <= set(getattr(held, name)) for name in HELD)
        ends[number].set()
        threads[number].join(10)
        left.discard(number)
    assert force() == before
