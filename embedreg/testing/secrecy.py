"""Tests of secrets: they are stored as references, and do not appear anywhere."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest
from pydantic_core import to_json

from embedreg.core.base import EmbeddingFunction
from embedreg.core.canonical import registered_name
from embedreg.core.fields import sensitive_fields
from embedreg.declaration import codec
from embedreg.errors import HardcodedSecretError
from embedreg.security import references
from embedreg.testing.checks import embed, flaw, require

__all__ = ["SecretContract"]


class SecretContract:
    """No text about the function contains a secret."""

    @pytest.fixture
    def provoke(self, function: EmbeddingFunction) -> Callable[[], Any]:
        """A call that makes the function fail; override it with a failure in code that has access to the secret."""
        return lambda: function.compute_source_embeddings([object()])

    def test_written_out_secrets_are_refused(self, function: EmbeddingFunction) -> None:
        """A sensitive field accepts only a `$var:` reference."""
        cls = type(function)
        for name in sorted(sensitive_fields(cls) & cls.model_fields.keys()):
            for make in (cls.create, cls):
                try:
                    make(**{**function.safe_model_dump(), name: "written-out"})
                except HardcodedSecretError:
                    continue
                except Exception as exc:
                    raise flaw(f"{name}='written-out' gave {type(exc).__name__}.", _TO_THE_BASE) from exc
                raise flaw(f"{name}='written-out' was accepted.", _TO_THE_BASE)

    def test_no_secret_in_what_is_printed_or_stored(
        self, function: EmbeddingFunction, inputs: list[Any], secret_values: list[str]
    ) -> None:
        """Neither repr nor dumps, pickle, schema or metadata contain a secret, before or after use."""
        for moment in ("before use", "after use"):
            if moment == "after use":
                embed(function, list(inputs))
            texts = {
                "repr()": repr(function),
                "str()": str(function),
                "format()": f"{function}",
                "model_dump()": repr(function.model_dump()),
                "model_dump_json()": function.model_dump_json(),
                "pydantic_core.to_json()": to_json(
                    [function], serialize_unknown=True, inf_nan_mode="constants"
                ).decode(),
                "safe_model_dump()": repr(function.safe_model_dump()),
                "its fields": repr(function.raw_fields()),
                "pickle.dumps()": pickle.dumps(function, 0).decode("latin-1"),
                "model_json_schema()": repr(type(function).model_json_schema()),
                "vector_traits()": repr(function.vector_traits()),
                "model_identity()": repr(function.model_identity()),
            }
            if registered_name(type(function)) is not None:
                texts["the stored declaration"] = codec.encode([function.bind("source", "vector")]).decode()
            for where, text in texts.items():
                _require_clean(text, secret_values, f"{where} shows a secret {moment}", _AS_A_REFERENCE)

    def test_no_secret_in_logs_or_output(
        self,
        function: EmbeddingFunction,
        inputs: list[Any],
        query: Any,
        secret_values: list[str],
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Embedding does not log or print a secret, not even at DEBUG."""
        with caplog.at_level(logging.DEBUG):
            embed(function, list(inputs))
            function.compute_query_embeddings(query)
        printed = capfd.readouterr()
        for where, text in (("a log", caplog.text), ("stdout", printed.out), ("stderr", printed.err)):
            _require_clean(text, secret_values, f"{where} shows a secret", "log and print names, never values")

    def test_no_secret_in_errors(self, provoke: Callable[[], Any], secret_values: list[str]) -> None:
        """The error of a failing call contains no secret: not in its text, its causes or its traceback's variables."""
        try:
            provoke()
        except Exception as exc:  # noqa: BLE001 (any error is checked, and none is required)
            own = exc.__traceback__.tb_next if exc.__traceback__ is not None else None
            _require_clean(_all_of(exc, own), secret_values, f"{type(exc).__name__} shows a secret", _IN_METHODS)


_TO_THE_BASE = "pass all of **kwargs unchanged to super().__init__(**kwargs), and name the field in sensitive_keys()"
_AS_A_REFERENCE = (
    "keep the reference: read self.<field> where the value is needed, and copy it into no other field; "
    "a private attribute (with _) is never printed or stored"
)
_IN_METHODS = (
    "raise errors from ndims(), generate_embeddings() or compute_*_embeddings(), which the base redacts, and "
    "name every secret field in sensitive_keys()"
)


def _require_clean(text: str, values: list[str], what: str, hint: str) -> None:
    require(references.redact(text, values) == text, f"{what}.", hint)


def _all_of(exc: BaseException, own: TracebackType | None) -> str:
    """Return everything that a debugger or error tracker would print of an error, with `own` as its traceback."""
    seen: list[str] = []
    following: BaseException | None = exc
    frames = own
    while following is not None:
        summary = traceback.StackSummary.extract(traceback.walk_tb(frames), capture_locals=True)
        seen += [repr(following), str(following), repr(vars(following)), *summary.format()]
        following = following.__cause__ or following.__context__
        frames = following.__traceback__ if following is not None else None
    return "\n".join(seen)
