"""A server on loopback with the batch API of a vendor: files, batches, lists, states, partial errors, lost answers."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import embedreg
from embedreg import EmbeddingFunction
from tests.servers import Received
from tests.vendors import KEY, WIDTH, VendorServer, _Vendors

_KEYED = {"api_key": "$var:vendor_key"}
CONFIGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "openai": lambda url: {**_KEYED, "name": "m", "dim": WIDTH, "base_url": url + "/v1"},
    "voyageai": lambda url: {**_KEYED, "name": "voyage-m", "dim": WIDTH, "base_url": url + "/v1"},
    "mistral": lambda url: {**_KEYED, "name": "m", "dim": WIDTH, "base_url": url + "/v1"},
    "gemini-text": lambda url: {**_KEYED, "dim": WIDTH, "base_url": url},
    "jina": lambda url: {
        **_KEYED,
        "name": "jina-embeddings-v5-text-small",
        "dim": WIDTH,
        "source_task": "retrieval.passage",
        "base_url": url + "/v1",
    },
}
VENDORS = list(CONFIGS)


@dataclass
class Made:
    """A batch of the server: what was asked, and how often it was looked at."""

    id: str
    tag: str | None
    lines: list[tuple[str, str, Any]]  # the place in the batch, the text, the request
    created: float = field(default_factory=time.time)
    polls: int = 0
    status: str = "running"

    def texts(self) -> list[str]:
        """Return the inputs."""
        return [text for _, text, _ in self.lines]


class BatchServer(VendorServer):
    """The server of one vendor, as a context manager.

    Attributes:
        batches: what was created, by id. files: what was uploaded or made.
        polls: how often a batch is "running" before it ends.
        refused: texts that the service refuses with 400.
        expire_after: inputs of a batch that are embedded before it expires; None for all.
        fails: the message of a batch that fails as a whole; None for none.
        creations: for each creation, in order: a status to answer with instead, "lost" (created, the connection ends
            without an answer), "unsent" (not created, likewise).
        twist: what the results become before they are shown: the lines of a batch, and its number.
        hidden: how many looks at the list do not show the newest batch yet.
        billed: tokens of all results.
    """

    def __init__(self, vendor: str) -> None:
        super().__init__()
        self.vendor = vendor
        self.batches: dict[str, Made] = {}
        self.files: dict[str, bytes] = {}
        self.reset()

    def reset(self) -> None:
        """Empty the server."""
        self.batches.clear()
        self.files.clear()
        self.requests.clear()
        self.replies.clear()
        self.polls, self.hidden, self.billed, self.made = 1, 0, 0, 0
        self.refused: frozenset[str] = frozenset()
        self.expire_after: int | None = None
        self.fails: str | None = None
        self.creations: list[Any] = []
        self.on_create: Callable[[], object] = bool
        self.twist: Callable[[list[Any], int], list[Any]] = lambda lines, _: lines

    def function(self, **more: Any) -> EmbeddingFunction:
        """Return the vendor's function on this server."""
        embedreg.get_registry().set_var("vendor_key", KEY)
        made: EmbeddingFunction = embedreg.get(self.vendor).create(
            **{**CONFIGS[self.vendor](f"http://{self.host}"), **more}
        )
        return made

    @property
    def inputs(self) -> int:
        """The number of inputs of all batches."""
        return sum(len(made.lines) for made in self.batches.values())


class _Batches(_Vendors):
    owner: BatchServer

    def do_GET(self) -> None:  # noqa: N802 (the base's name)
        """Answer a list, a state or a file."""
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        owner = self.owner
        with owner.lock:
            owner.requests.append(Received(path, parts.query, {k.lower(): v for k, v in self.headers.items()}, {}))
            reply = owner.replies.popleft() if owner.replies else None
        if reply is not None:
            self._answer(path, {}, reply)
            return
        name = path.rpartition("/")[2]
        if path.endswith("/content"):
            self._bytes(owner.files[path.split("/")[-2]])
        elif path.endswith(("/output", "/errors")):
            self._bytes(owner.files[f"{path.split('/')[-2]}{'' if path.endswith('/output') else '-errors'}"])
        elif name in ("batches", "jobs"):
            self._send(200, json.dumps(self._list(query)))
        elif name in owner.batches:
            self._send(200, json.dumps(self._state(owner.batches[name], polled=True)))
        else:
            self._send(404, json.dumps({"message": "no such batch"}))

    def do_POST(self) -> None:  # noqa: N802 (the base's name)
        """Answer an upload, a creation, or an ordinary request."""
        path = unquote(urlsplit(self.path).path)
        if not path.endswith(("/files", "/batches", "/jobs", "/batch/embeddings", ":asyncBatchEmbedContent")):
            super().do_POST()
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        owner = self.owner
        headers = {k.lower(): v for k, v in self.headers.items()}
        with owner.lock:
            reply = owner.replies.popleft() if owner.replies else None
            if path.endswith("/files"):
                owner.requests.append(Received(path, "", headers, {}))
                fields = _form(headers["content-type"], content)
                assert fields["purpose"] == b"batch"
                file = f"file-{len(owner.files)}"
                owner.files[file] = fields["file"]
            else:
                owner.requests.append(Received(path, "", headers, json.loads(content)))
        if reply is not None:
            self._answer(path, {}, reply)
        elif path.endswith("/files"):
            self._send(200, json.dumps({"id": file, "object": "file"}))
        else:
            self._create(json.loads(content))

    def _create(self, body: Any) -> None:
        owner = self.owner
        how = owner.creations.pop(0) if owner.creations else "created"
        if isinstance(how, int):
            self._send(how, json.dumps({"message": "not now"}))
            return
        if how != "unsent":
            tag, lines = self._asked(body)
            with owner.lock:
                owner.made += 1
                made = Made(f"batch_{owner.made - 1}", tag, lines)
                owner.batches[made.id] = made
        owner.on_create()
        if how in ("lost", "unsent"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(200, json.dumps(self._state(made)))

    def _asked(self, body: Any) -> tuple[str | None, list[tuple[str, str, Any]]]:
        """Return the tag of a creation, and (place, text, request) of each of its inputs."""
        vendor = self.owner.vendor
        if vendor == "gemini-text":
            items = body["batch"]["inputConfig"]["requests"]["requests"]
            return body["batch"]["displayName"], [
                (i["metadata"]["key"], i["request"]["content"]["parts"][-1]["text"], i["request"]) for i in items
            ]
        if vendor == "jina":
            return None, [(f"request-{k}", text, {**body, "input": [text]}) for k, text in enumerate(body["input"])]
        file = body.get("input_file_id") or body["input_files"][0]
        lines = [json.loads(line) for line in self.owner.files[file].splitlines()]
        more = body.get("request_params") or ({"model": body["model"]} if vendor == "mistral" else {})
        requests = [{**more, **line["body"]} for line in lines]
        assert all(request["model"] in ("m", "voyage-m") for request in requests)
        assert body["endpoint"] == "/v1/embeddings"
        return body["metadata"]["embedreg"], [
            (line["custom_id"], request["input"][0], request) for line, request in zip(lines, requests, strict=True)
        ]

    # -- what the vendor shows ----------------------------------------------------------------------------------------

    def _list(self, query: Any) -> Any:
        owner = self.owner
        shown = list(owner.batches.values())[::-1]
        if owner.hidden > 0:
            owner.hidden -= 1
            shown = shown[1:]
        states = [self._state(made) for made in shown]
        if owner.vendor == "gemini-text":
            return {"operations": states}
        if owner.vendor == "openai":  # pages of one, as a long list has them
            after = query.get("after", [None])[0]
            place = 0 if after is None else [made.id for made in shown].index(after) + 1
            return {"data": states[place : place + 1], "has_more": place + 1 < len(shown)}
        return {"data": states, "has_more": False}

    def _state(self, made: Made, *, polled: bool = False) -> Any:
        owner = self.owner
        if polled and made.status == "running":
            made.polls += 1
            if made.polls > owner.polls:
                self._end(made)
        vendor, ended = owner.vendor, made.status != "running"
        done = made.lines if ended and made.status != "failed" else []
        if vendor == "gemini-text":
            words = {"running": "RUNNING", "done": "SUCCEEDED", "failed": "FAILED", "expired": "EXPIRED"}
            word = words.get(made.status, "CANCELLED")
            metadata = {
                "displayName": made.tag,
                "state": f"BATCH_STATE_{word}",
                "createTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made.created)),
                "batchStats": {"requestCount": str(len(made.lines))},
            }
            answer: dict[str, Any] = {"name": f"batches/{made.id}", "metadata": metadata, "done": ended}
            if made.status == "failed":
                answer["error"] = {"code": 3, "message": owner.fails}
            elif ended:
                lines = [json.loads(line) for line in owner.files[made.id].splitlines()]
                answer["response"] = {"inlinedResponses": {"inlinedResponses": lines}}
            return answer
        if vendor == "jina":
            words = {"running": "processing", "done": "completed", "failed": "failed", "expired": "completed"}
            errors = len(owner.files.get(f"{made.id}-errors", b"").splitlines())
            stats = {"total": len(made.lines), "completed": len(done), "failed": errors}
            status = words.get(made.status, "cancelled")
            shown = {"batch_id": made.id, "status": status, "created_at": made.created, "stats": stats}
            return {**shown, "error": owner.fails}
        names = ("output_file", "error_file") if vendor == "mistral" else ("output_file_id", "error_file_id")
        files = [made.id, f"{made.id}-errors"] if ended and made.status != "failed" else [None, None]
        if vendor == "mistral":
            words = {"running": "RUNNING", "done": "SUCCESS", "failed": "FAILED", "expired": "TIMEOUT_EXCEEDED"}
            counts: dict[str, Any] = {"total_requests": len(made.lines), "succeeded_requests": len(done)}
            errors: Any = [{"message": owner.fails}] if owner.fails else []
        else:
            words = {"running": "in_progress", "done": "completed", "failed": "failed", "expired": "expired"}
            counts = {"request_counts": {"total": len(made.lines), "completed": len(done), "failed": 0}}
            errors = {"data": [{"code": "invalid", "message": owner.fails}]} if owner.fails else None
        status = words.get(made.status, "CANCELLED" if vendor == "mistral" else "cancelled")
        shown = {"id": made.id, "status": status, "errors": errors, "metadata": {"embedreg": made.tag}}
        return {**shown, **dict(zip(names, files, strict=True)), **counts, "created_at": made.created}

    def _end(self, made: Made) -> None:
        """End a batch: write the results of its inputs, in reverse, and the errors."""
        owner = self.owner
        if owner.fails is not None:
            made.status = "failed"
            return
        made.status = "done" if owner.expire_after is None else "expired"
        done, errors = [], []
        for number, (place, text, request) in enumerate(made.lines):
            gemini = owner.vendor == "gemini-text"
            named = {"metadata": {"key": place}} if gemini else {"id": f"r{place}", "custom_id": place}
            if owner.expire_after is not None and number >= owner.expire_after:
                errors.append({**named, "response": None, "error": {"code": "batch_expired", "message": "too late"}})
            elif text in owner.refused:
                problem = {"message": f"not allowed, {KEY}"}
                failed: Any = {"response": {"status_code": 400, "body": {"error": problem}}, "error": None}
                errors.append({**named, **({"error": {"code": 3, **problem}} if gemini else failed)})
            else:
                owner.billed += len(text.split())
                if gemini:
                    answer = self._shaped(":embedContent", request)
                    tokens = {"usageMetadata": {"promptTokenCount": str(len(text.split()))}}
                    done.append({**named, "response": {**answer, **tokens}})
                else:
                    body = self._shaped("/v1/embeddings", request)
                    body["usage"] = {"total_tokens": len(text.split()), "prompt_tokens": len(text.split())}
                    done.append({**named, "response": {"status_code": 200, "body": body}, "error": None})
        if owner.vendor == "gemini-text":
            done, errors = [*errors, *done], []
        lines = owner.twist(done[::-1], int(made.id.rpartition("_")[2]))
        owner.files[made.id] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        owner.files[f"{made.id}-errors"] = b"".join(json.dumps(line).encode() + b"\n" for line in errors)

    def _bytes(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _form(kind: str, content: bytes) -> dict[str, bytes]:
    """Return the fields of a form with files."""
    message = email.message_from_bytes(
        b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content, policy=email.policy.HTTP
    )
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)  # type: ignore[misc]
        for part in message.iter_parts()  # type: ignore[attr-defined]
    }


BatchServer.handler = _Batches
