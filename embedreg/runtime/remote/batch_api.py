"""Batch APIs: a service embeds many inputs within hours, at a lower price than it answers requests.

Each vendor's API is a `BatchApi`: create a batch, list batches, look at one, read its results. `batch_calls` has what
is the same for all. A batch has a tag of ours, so that one whose response was lost is found again in the vendor's list
instead of being submitted twice.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from embedreg.runtime.remote.answers import AnswerError, count_of
from embedreg.runtime.remote.http import MAX_ANSWER_BYTES, in_path, message_of

__all__ = ["PAGE", "PAGES", "TRANSFER_S", "BatchApi", "BatchResult", "BatchState", "FileBatches", "Found"]
__all__ += ["as_object", "listed", "name_in", "place_of", "result_of", "time_of"]

TRANSFER_S = 600.0  # the time limit of an upload or a download
PAGES = 50  # of a list of batches
PAGE = 100


class BatchState(NamedTuple):
    """A batch as the vendor shows it.

    Attributes:
        status: "running"; "ended", with results that may lack some inputs; "cancelled", likewise; "failed", with none.
        done: how many inputs are embedded. total: of how many; 0 if unknown.
        message: why it failed.
        tag: its tag, "" if it has none; None if the vendor keeps no tags.
        outputs: where the results are.
        results: the results themselves, if the vendor returns them with the state.
    """

    status: Literal["running", "ended", "cancelled", "failed"]
    done: int = 0
    total: int = 0
    message: str = ""
    tag: str | None = None
    outputs: tuple[str, ...] = ()
    results: Any = None


class BatchResult(NamedTuple):
    """The result of one input.

    Attributes:
        place: its place in the batch, from 0.
        status: the HTTP status; 0 if it was not embedded.
        body: the response, as of a request with this input alone.
        message: why it failed.
    """

    place: int
    status: int
    body: Any = None
    message: str = ""


class Found(NamedTuple):
    """A batch in the vendor's list: its handle, its tag or None, when it was created (0 if unknown), its inputs."""

    handle: str
    tag: str | None
    created: float = 0.0
    inputs: int = 0


class BatchApi(ABC):
    """A vendor's batch API for one function.

    Args:
        vendor: its name, for messages.
        number_bytes: about the bytes of one number of a vector in the results; 22 for JSON.

    Attributes:
        max_inputs, max_bytes: of one batch.
    """

    max_inputs: ClassVar[int] = 50_000
    max_bytes: ClassVar[int] = 100 * 2**20

    def __init__(self, function: Any, vendor: str, number_bytes: float = 22.0) -> None:
        self.function, self.vendor, self.number_bytes = function, vendor, number_bytes

    # -- defined for each vendor ------------------------------------------------------------------------------------

    @abstractmethod
    def line(self, place: int, text: str) -> Any:
        """Return the form of one input in a batch."""

    def prepare(self, tag: str, lines: Sequence[Any]) -> Any:
        """Upload what a batch needs; return what `create` gets. May be repeated."""
        return lines

    @abstractmethod
    def create(self, tag: str, prepared: Any) -> str:
        """Create a batch and return its handle. Never repeated without a look at the list."""

    @abstractmethod
    def found(self) -> Iterator[Found]:
        """Yield the batches of the account, the newest first."""

    @abstractmethod
    def state(self, handle: str) -> BatchState:
        """Return the state of a batch."""

    @abstractmethod
    def results(self, handle: str, state: BatchState, inputs: int) -> Iterator[BatchResult]:
        """Yield the results, in any order."""

    # -- tools ------------------------------------------------------------------------------------------------------

    def parts(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """Cut inputs into ranges that one batch may have each: by number, by bytes, and by the size of the results."""
        width = self.function.ndims()
        most = max(1, min(self.max_inputs, int(0.8 * MAX_ANSWER_BYTES / (width * self.number_bytes + 500))))
        cut, start, size = [], 0, 0
        for place, text in enumerate(texts):
            length = len(_dumped(self.line(place, text))) + 1
            if place > start and (place - start == most or size + length > self.max_bytes):
                cut.append((start, place))
                start, size = place, 0
            size += length
        return [*cut, (start, len(texts))] if texts else []

    def get(self, path: str, timeout_s: float | None = None) -> Any:
        """Return the JSON at a path below the endpoint."""
        return json.loads(self.function._request_bytes("GET", path, timeout_s=timeout_s))

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None, timeout_s: float | None = None) -> Any:
        """Send JSON and return that of the response."""
        return json.loads(self.function._request_bytes("POST", path, body, headers=headers, timeout_s=timeout_s))

    def lines_at(self, path: str) -> Iterator[Any]:
        """Yield the objects of JSON lines at a path below the endpoint."""
        content = self.function._request_bytes("GET", path, timeout_s=TRANSFER_S)
        start = 0
        while start < len(content):
            end = content.find(b"\n", start)
            end = len(content) if end < 0 else end
            if content[start:end].strip():
                try:
                    line = json.loads(content[start:end])
                except (ValueError, RecursionError):
                    line = None
                yield as_object(line)
            start = end + 1


class FileBatches(BatchApi):
    """Batches in OpenAI's form, which Voyage, Mistral and others share: a file of JSON lines, files of results.

    Source: OpenAI API reference, Batch; Voyage AI, Batch Inference. Read, not tried against either.
    """

    window: ClassVar[str] = "24h"
    path: ClassVar[str] = "/batches"
    # the vendor's word -> ours
    states: ClassVar[dict[str, str]] = {
        "completed": "ended",
        "expired": "ended",
        "cancelled": "cancelled",
        "failed": "failed",
    }

    def line(self, place: int, text: str) -> Any:
        body = self.function._body([text], "source")
        return {"custom_id": str(place), "method": "POST", "url": "/v1/embeddings", "body": body}

    def prepare(self, tag: str, lines: Sequence[Any]) -> Any:
        content = b"".join(_dumped(line) + b"\n" for line in lines)
        upload = (f"embedreg-{tag}.jsonl", content)
        answer = json.loads(
            self.function._request_bytes("POST", "/files", {"purpose": "batch"}, upload=upload, timeout_s=TRANSFER_S)
        )
        return name_in(answer, "id")

    def batch(self, tag: str, file: str) -> dict[str, Any]:
        """Return the body that creates a batch."""
        return {
            "input_file_id": file,
            "endpoint": "/v1/embeddings",
            "completion_window": self.window,
            "metadata": {"embedreg": tag},
        }

    def create(self, tag: str, prepared: Any) -> str:
        return name_in(self.post(self.path, self.batch(tag, prepared), {"Idempotency-Key": tag}), "id")

    def found(self) -> Iterator[Found]:
        after = ""
        for _ in range(PAGES):
            answer = self.get(f"{self.path}?limit={PAGE}{after}")
            items = listed(answer, "data")
            yield from map(self._found, items)
            if not items or not answer.get("has_more"):
                return
            after = f"&after={in_path(name_in(items[-1], 'id'))}"

    def _found(self, item: Any) -> Found:
        return Found(name_in(item, "id"), _tag_in(item), time_of(item.get("created_at")))

    def state(self, handle: str) -> BatchState:
        answer = self.get(f"{self.path}/{in_path(handle)}")
        counts = answer.get("request_counts") or {}
        outputs = [answer.get(name) for name in ("output_file_id", "error_file_id")]
        return self._state(answer, counts.get("completed"), counts.get("total"), outputs)

    def _state(self, answer: Any, done: Any, total: Any, outputs: Iterable[Any]) -> BatchState:
        status: Any = self.states.get(str(answer.get("status")), "running")
        errors = answer.get("errors")
        message = message_of(errors.get("data") if isinstance(errors, dict) else errors)
        files = tuple(each for each in outputs if isinstance(each, str) and each)
        tag = _tag_in(answer) if "metadata" in answer else None  # some compatible servers return none
        return BatchState(status, count_of(done) or 0, count_of(total) or 0, message, tag, files)

    def results(self, handle: str, state: BatchState, inputs: int) -> Iterator[BatchResult]:
        for file in state.outputs:
            for line in self.lines_at(f"/files/{in_path(file)}/content"):
                if (place := place_of(line.get("custom_id"))) is not None:
                    yield result_of(place, line)


def as_object(item: Any) -> dict[str, Any]:
    """Return one of the results.

    Raises:
        AnswerError: it is not a JSON object.
    """
    if not isinstance(item, dict):
        raise AnswerError("one of the results is not a JSON object.", "run the same command again")
    return item


def place_of(value: Any) -> int | None:
    """Return the place of an input from the identifier that its result names, as `line` writes it; None for others."""
    return int(value) if isinstance(value, str) and _PLACE.fullmatch(value) else None


def result_of(place: int, line: Any) -> BatchResult:
    """Return the result in a line of OpenAI's form: `response.status_code`, `response.body`, `error`."""
    response, error = line.get("response"), line.get("error")
    body = response.get("body") if isinstance(response, dict) else None
    status = (count_of(response.get("status_code")) if isinstance(response, dict) else None) or 0
    if error or not 200 <= status < 300:
        return BatchResult(place, status if not 200 <= status < 300 else 0, None, message_of(error or body))
    return BatchResult(place, status, body)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


_NAME = re.compile(r"[\x21-\x7e]{1,512}")
_PLACE = re.compile("0|[1-9][0-9]{0,7}")


def name_in(answer: Any, key: str) -> str:
    """Return an identifier in a response.

    Raises:
        AnswerError: there is none.
    """
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise AnswerError("the server's response contains no identifier.", "check that the endpoint has a batch API")
    return found


def _tag_in(answer: Any) -> str:
    metadata = answer.get("metadata") if isinstance(answer, dict) else None
    found = metadata.get("embedreg") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else ""


def listed(answer: Any, key: str) -> list[Any]:
    """Return the objects in a list of a response."""
    found = answer.get(key) if isinstance(answer, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def time_of(value: Any) -> float:
    """Return a time in seconds, from a number of seconds or an ISO date; 0 if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    import datetime as dt

    try:
        return dt.datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return 0.0
