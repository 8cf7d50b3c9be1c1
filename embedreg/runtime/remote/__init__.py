"""The base classes of remote functions: batches, concurrent requests, retries, and isolating refused inputs.

A remote function is a subclass of `RemoteTextFunction`, or for other inputs than texts of `RemoteFunction`, with
`ndims()` and `request(batch, role)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.runtime.remote.answers import AnswerError, Refusal
    from embedreg.runtime.remote.function import RemoteFunction, RemoteTextFunction, client_key, clients, release
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "AnswerError": "answers",
            "Refusal": "answers",
            "RemoteFunction": "function",
            "RemoteTextFunction": "function",
            "client_key": "function",
            "clients": "function",
            "release": "function",
        },
    )

__all__ = ["AnswerError", "Refusal", "RemoteFunction", "RemoteTextFunction", "client_key", "clients", "release"]
