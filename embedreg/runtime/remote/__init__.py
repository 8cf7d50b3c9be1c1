"""The base classes of remote functions: batches, concurrent requests, retries, and isolating refused inputs.

A remote function is a subclass of `RemoteTextFunction`, or for other inputs than texts of `RemoteFunction`, with
`ndims()` and `request(batch, role)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.runtime.remote.answers import AnswerError, Refusal, Usage, report_usage
    from embedreg.runtime.remote.connections import client_key, clients, release
    from embedreg.runtime.remote.function import RemoteFunction, RemoteTextFunction
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "AnswerError": "answers",
            "Refusal": "answers",
            "Usage": "answers",
            "RemoteFunction": "function",
            "RemoteTextFunction": "function",
            "client_key": "connections",
            "clients": "connections",
            "release": "connections",
            "report_usage": "answers",
        },
    )

__all__ = [
    "AnswerError",
    "Refusal",
    "RemoteFunction",
    "RemoteTextFunction",
    "Usage",
    "client_key",
    "clients",
    "release",
    "report_usage",
]
