"""A Flight client as Databend is one, certificates for servers on loopback, and functions that fail on demand."""

from __future__ import annotations

import datetime
import ipaddress
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

import embedreg
from embedreg import RowError, TextEmbeddingFunction

SECRET = "sk-a-planted-secret-0123456789"


class Client:
    """Calls a server's functions over Flight, a batch at a time.

    Args:
        address: "http://..." or "https://...", as in CREATE FUNCTION.
        token: what to send.
        root: the certificate to trust, PEM.
    """

    def __init__(self, address: str, token: str | None = None, root: bytes | None = None) -> None:
        location = address.replace("https://", "grpc+tls://").replace("http://", "grpc://")
        self._client = flight.FlightClient(location, tls_root_certs=root)
        self._headers = [(b"authorization", f"Bearer {token}".encode())] if token is not None else []

    def call(self, name: str, values: Any, timeout_s: float = 60) -> pa.ChunkedArray:
        """Call a function with a column; return its result, in the chunks that came."""
        column = values if isinstance(values, pa.Array) else pa.array(values, pa.large_string())
        return self.exchange(name, pa.record_batch({"input": column}), timeout_s=timeout_s).column(0)

    def exchange(self, name: str, *batches: pa.RecordBatch, timeout_s: float = 60) -> pa.Table:
        """Call a function with batches; return its answer."""
        options = flight.FlightCallOptions(headers=self._headers, timeout=timeout_s)
        writer, reader = self._client.do_exchange(flight.FlightDescriptor.for_path(name), options=options)
        with writer:
            writer.begin(batches[0].schema)
            for batch in batches:
                writer.write_batch(batch)
            writer.done_writing()
            return reader.read_all()

    def schema(self, name: str) -> pa.Schema:
        """Return the fields of a function: its inputs, then its result."""
        options = flight.FlightCallOptions(headers=self._headers, timeout=60)
        return self._client.get_flight_info(flight.FlightDescriptor.for_path(name), options=options).schema

    def open_call(self, name: str) -> Any:
        """Begin a call, send one batch, and leave it open."""
        options = flight.FlightCallOptions(headers=self._headers)
        writer, reader = self._client.do_exchange(flight.FlightDescriptor.for_path(name), options=options)
        batch = pa.record_batch({"input": pa.array(["still here"], pa.large_string())})
        writer.begin(batch.schema)
        writer.write_batch(batch)
        reader.read_chunk()
        return writer, reader


@dataclass
class Behaviour:
    """What a `Scripted` function does, decided from outside: it is shared by name, since functions are values."""

    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Event = field(default_factory=threading.Event)
    seen: list[str] = field(default_factory=list)


class Scripted(TextEmbeddingFunction):
    """Embeds a text as (1, its length, its vowels), or does what the text requests.

    "raise": any error, with a path and a secret in it. "call": a CallError that quotes its input. "wide": vectors of
    another width. "nan", "zero", "none", "bad": a row that is not finite, has no direction, has no vector, is refused.
    "wait": stays until it is let go. What begins with "slow": a call that takes 10 ms.
    """

    behaviours: ClassVar[dict[str, Behaviour]] = {}
    traits: ClassVar[embedreg.Traits] = embedreg.Traits(retry=False, window=64)

    script: str = "default"

    def ndims(self) -> int:
        return 3

    @property
    def behaviour(self) -> Behaviour:
        """Return what tests read and set."""
        return self.behaviours.setdefault(self.script, Behaviour())

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        texts = [str(text) for text in texts]
        self.behaviour.seen.extend(texts)
        self.behaviour.started.release()
        if "raise" in texts:
            raise ValueError(f"/home/someone/secret.key holds {SECRET}: {texts}")
        if call := [text for text in texts if text.startswith("call")]:
            raise embedreg.errors.CallError(f"the service at /srv/models/x said no to {call[0]!r}", "ask again")
        if "wait" in texts:
            assert self.behaviour.go.wait(60)
        if any(text.startswith("slow") for text in texts):
            time.sleep(0.01)
        if "wide" in texts:
            return np.ones((len(texts), 4), np.float32)
        special = {"nan": [np.nan] * 3, "zero": [0.0] * 3, "none": None, "bad": RowError("refused by hand")}
        return [special.get(text, vector_of(text)) for text in texts]


def vector_of(text: str) -> list[float]:
    """Return the vector that `Scripted` gives a text."""
    return [1.0, float(len(text)), float(sum(text.count(vowel) for vowel in "aeiou"))]


def expected(texts: Sequence[str | None]) -> list[list[float] | None]:
    """Return what a column should become: null and blank texts have no vector."""
    return [vector_of(text) if text is not None and text.strip() else None for text in texts]


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for localhost that vouches for itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "server.pem", folder / "server.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return cert_file, key_file
