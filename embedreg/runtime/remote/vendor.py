"""`VendorFunction`, the base class of text functions whose service takes one POST of JSON.

A subclass has a table of its vendor's numbers and defines `request(batch, role)`: the body, and where the vectors are
in the response. Keys, the endpoint, widths, checks of the response and the meaning of errors are defined here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from embedreg.core.fields import MAX_NDIMS
from embedreg.errors import CallError, ConfigError, MissingVariableError, UntrustedError, VectorError
from embedreg.runtime.remote import http
from embedreg.runtime.remote.answers import (
    MEANING,
    Refusal,
    Usage,
    count_of,
    host_of,
    in_order,
    matrix_of,
    report_usage,
)
from embedreg.runtime.remote.function import RemoteFunction, RemoteTextFunction
from embedreg.security.references import is_reference
from embedreg.support.retry import http_status

__all__ = ["Model", "Vendor", "VendorBase", "VendorFunction"]

_TOO_LONG = re.compile(
    r"(?i)(maximum|max)\W+(context|input|sequence)\W+length|context[ _]length|too[ _]long"
    r"|exceeds? the (context|maximum)|token limit|input length"
)
_BATCH = re.compile(r"(?i)too many (inputs|texts|items|tokens)|batch (size|too large)|at most \d+ (inputs|texts|items)")
_NO_CREDIT = re.compile(r"(?i)insufficient[ _](balance|quota|credit|funds)|no credit|billing")
_HINT = "check that the endpoint serves embeddings, and the model's name"


@dataclass(frozen=True)
class Model:
    """A vendor's numbers for a model, as published; the server's responses win.

    Attributes:
        ndims: the width of its vectors.
        widths: other widths that can be requested.
        max_tokens: the maximum tokens of a text; None if unknown.
        max_inputs: the maximum inputs of a request; None for the vendor's.
        request_tokens: the maximum tokens of a request; None if unlimited.
        retired: "on <date>" or "" where the vendor switched it off; None where it has not.
    """

    ndims: int
    widths: tuple[int, ...] = ()
    max_tokens: int | None = None
    max_inputs: int | None = None
    request_tokens: int | None = None
    retired: str | None = None


@dataclass(frozen=True)
class Vendor:
    """The properties that all models of a vendor share.

    Attributes:
        name: in messages.
        models: by name.
        url: the address, if the configuration has none; None if there is no usual one.
        address_field: the field that holds another address.
        key_names: the environment variables that hold a key, in order.
        key_header: the header of a key.
        key_scheme: what precedes the key in it.
        needs_key: whether the vendor refuses requests without a key.
        max_inputs: the maximum inputs of a request.
        docs: the title of the vendor's documentation.
    """

    name: str
    models: Mapping[str, Model] = field(default_factory=dict)
    url: str | None = None
    address_field: str = "base_url"
    key_names: tuple[str, ...] = ()
    key_header: str = "Authorization"
    key_scheme: str = "Bearer "
    needs_key: bool = True
    max_inputs: int | None = None
    docs: str = ""


class VendorBase(RemoteFunction):
    """The common base of vendors' text and image functions: keys, the endpoint, widths, checks, errors."""

    vendor: ClassVar[Vendor]

    @classmethod
    def model_names(cls) -> list[str]:
        """Return the models with known numbers that their vendor still serves."""
        return [name for name, model in cls.vendor.models.items() if model.retired is None]

    @classmethod
    def _facts(cls) -> dict[str, Any]:
        """Return the vendor's numbers: as published, or as its server reports them."""
        default = cls.model_fields["name"].default if "name" in cls.model_fields else None
        models = {
            name: {"ndims": model.ndims, "widths": [*model.widths], "max_tokens": model.max_tokens}
            | ({} if model.retired is None else {"retired": model.retired})
            for name, model in cls.vendor.models.items()
            if model.retired is None or name == default
        }
        batch: int = cls.model_fields["batch_size"].default
        return {
            "limits": {"inputs": min(batch, cls.vendor.max_inputs or batch)},
            "models": models,
            "keys": [*cls.vendor.key_names],
            "documentation": cls.vendor.docs or None,
        }

    # -- the model --------------------------------------------------------------------------------------------------

    def _model(self) -> Model | None:
        """Return the numbers of the model; None if it is unknown."""
        return self.vendor.models.get(getattr(self, "name", ""))

    def _requested_width(self) -> int | None:
        """Return the width that requests ask for; None for the model's own."""
        return getattr(self, "dim", None)

    def ndims(self) -> int:
        """Return the width: the requested one, or the model's own; for an unknown model, query the server once.

        Raises:
            CallError: the query failed.
        """
        known = self._known_ndims()
        if known is not None:
            return known
        try:
            self._probe_width()
        except CallError as exc:
            raise CallError(
                f"the width of {getattr(self, 'name', 'the model')!r} is unknown, and querying the server for it "
                f"failed: {exc.message}",
                f"create(..., dim=...) sets the width without a query; {exc.hint}",
            ).for_shell(f"--set dim=... sets the width; {exc.shell_hint or exc.hint}") from exc.__cause__
        if self._ndims is None:  # the server refused this text too
            raise CallError("the server returns no vectors.", _HINT)
        return int(self._ndims)

    def _probe_width(self) -> None:
        """Embed a text, whose response has the width."""
        self.compute_query_embeddings("dimensions")

    def _known_ndims(self) -> int | None:
        width = self._requested_width()
        if width is not None:
            return width
        if (model := self._model()) is not None:
            return model.ndims
        if self._ndims is not None:
            return int(self._ndims)
        declared = self._declared.get("ndims")
        plausible = isinstance(declared, int) and not isinstance(declared, bool) and 0 < declared <= MAX_NDIMS
        return declared if plausible else None

    def _refuse_width(self, width: int | None) -> None:
        """Raise ValueError, in a validator, for a width that the model is known not to have."""
        model = self._model()
        if width is not None and model is not None and width != model.ndims and width not in model.widths:
            available = ", ".join(map(str, sorted({model.ndims, *model.widths})))
            raise ValueError(f"{getattr(self, 'name', '')} has vectors of {available} dimensions, not {width}")

    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens of a text; None for an unknown model."""
        model = self._model()
        return None if model is None else model.max_tokens

    def _request_limits(self) -> tuple[int, int]:
        inputs, tokens = super()._request_limits()
        model = self._model() or Model(0)
        limits = [limit for limit in (model.max_inputs or self.vendor.max_inputs,) if limit is not None]
        return min([inputs, *limits]), min(tokens, model.request_tokens or tokens)

    def _roles(self) -> tuple[str, str]:
        """Return what the service gets with queries and with documents, as prompts or its own names; "" for nothing."""
        return "", ""

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors; `prompts` is None if queries and sources are embedded alike."""
        query, document = self._roles()
        return {
            **super().vector_traits(),
            "prompts": None if query == document else {"query": query, "document": document},
        }

    # -- one request ------------------------------------------------------------------------------------------------

    def _post(self, path: str, body: Any, **headers: str) -> Any:
        """Send one request to a path below the endpoint, with the key, and return the JSON of its response."""
        return http.exchange(
            self._endpoint() + path,
            body,
            headers={**self._key_headers(), **headers},
            timeout_s=self.timeout_s,
            extra=self.traits.extra,
        )

    def _request_bytes(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        upload: tuple[str, bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send a request of a batch API, and return the content of its response.

        Args:
            upload: the name and the content of a file; `body` then holds the form's fields.
        """
        return http.transfer(
            self._endpoint() + path,
            None if upload else body,
            form=body if upload else None,
            upload=upload,
            method=method,
            headers={**self._key_headers(), **(headers or {})},
            timeout_s=max(self.timeout_s, timeout_s or 0.0),
            extra=self.traits.extra,
        )

    def _matrix(self, vectors: Any, m: int, tokens: Any = None) -> Any:
        """Return a response's vectors as (m, d) float32 after checking number and width, and report the usage.

        Raises:
            AnswerError: not m vectors of one width. VectorError: another width than expected.
        """
        report_usage(Usage(1, m, count_of(tokens)))
        matrix = matrix_of(vectors, m, _HINT)
        width, expected = int(matrix.shape[1]), self._known_ndims()
        if expected is not None and width != expected:
            raise VectorError(
                f"{getattr(self, 'name', self.vendor.name)!r} returned vectors of {width} dimensions, "
                f"expected {expected}.",
                "check which model the server has; dim=... declares another width",
            )
        self._ndims = width
        return matrix

    def _field(self, answer: Any, *names: str) -> Any:
        """Return a value inside a response by the names that lead to it; None where there is none."""
        for name in names:
            answer = answer.get(name) if isinstance(answer, dict) else None
        return answer

    def _listed(self, answer: Any, m: int) -> Any:
        """Return the vectors of a response in OpenAI's shape, `data[].embedding`, as `_matrix` does."""
        items = in_order(self._field(answer, "data"), m, _HINT)
        tokens = self._field(answer, "usage", "total_tokens") or self._field(answer, "usage", "prompt_tokens")
        return self._matrix([self._field(item, "embedding") for item in items], m, tokens)

    # -- the endpoint and the key -----------------------------------------------------------------------------------

    def _given_address(self) -> str | None:
        """Return the address of the configuration, if it is not the vendor's own."""
        name = self.vendor.address_field
        value = getattr(self, name, None)
        return value if value and value != type(self).model_fields[name].default else None

    def _foreign(self) -> bool:
        """Return whether stored metadata, not the reader's own code, chose the endpoint."""
        return self.from_metadata and self._given_address() is not None

    def _endpoint(self) -> str:
        """Return the address of the service.

        Raises:
            ConfigError: there is none, or it is ambiguous.
        """
        name = self.vendor.address_field
        given = getattr(self, name, None) or self.vendor.url
        if not given:
            raise ConfigError(f"{self.vendor.name} has no usual address.", f"create(..., {name}='http://host:port')")
        return http.endpoint(given, name)

    def _refuse_address(self) -> None:
        """Raise ValueError, in a validator, for an address that cannot be one."""
        given = self.__dict__.get(self.vendor.address_field)
        if isinstance(given, str) and given and not is_reference(given):
            try:
                http.endpoint(given, self.vendor.address_field)
            except ConfigError as exc:
                raise ValueError(exc.message.rstrip(".")) from None

    def _key(self) -> str | None:
        """Return the key: the configuration's, else the environment's unless stored metadata chose the endpoint.

        Raises:
            MissingVariableError: there is none, and the vendor needs one.
        """
        key = getattr(self, "api_key", None)
        if not key and not self._foreign():
            key = next((os.environ[name] for name in self.vendor.key_names if os.environ.get(name)), None)
        if not key and self.vendor.needs_key and self._given_address() is None:
            variable = self.vendor.key_names[0]
            raise MissingVariableError(
                f"there is no key for {self.vendor.name}: api_key is not set, nor the environment variable "
                f"{' or '.join(self.vendor.key_names)}.",
                f"export {variable}=..., or create(api_key='$var:my_key') after "
                "embedreg.get_registry().set_var('my_key', ...)",
            ).for_shell(f"export {variable}=..., or --set 'api_key=$var:key' --env key=ENVIRONMENT_VARIABLE")
        return key or None

    def _key_headers(self) -> dict[str, str]:
        """Return the header that holds the key.

        Raises:
            ConfigError: the key has characters that no header can hold.
        """
        key = self._key()
        if key is None:
            return {}
        key = http.key_for_header(key, self.vendor.name)
        return {self.vendor.key_header: f"{self.vendor.key_scheme}{key}"}

    def _refuse_foreign(self, what: str) -> None:
        """Raise UntrustedError if stored metadata chose the endpoint: something of this environment would go there."""
        if self._foreign():
            raise UntrustedError(
                f"stored metadata chose the endpoint, and {what} would be sent there.",
                "create the same function in your own code first",
            )

    def _retired(self, model: Model) -> str:
        return f"{self.vendor.name} switched this model off {model.retired}".rstrip()

    def _remarks(self) -> list[str]:
        model = self._model()
        if model is None or model.retired is None or self._given_address() is not None:
            return super()._remarks()
        note = f"{self._retired(model)}, so its column cannot be searched by text nor extended"
        return [*super()._remarks(), f"{getattr(self, 'name', '')!r}: {note}"]

    # -- errors -----------------------------------------------------------------------------------------------------

    def explain(self, exc: Exception) -> Refusal | None:
        status, message = http_status(exc), self.words_of(exc)
        model = self._model()
        if model is not None and model.retired is not None and status in (400, 404, 410, 422):
            return Refusal("call", message, f"{self._retired(model)}: embed the column again with another model")
        if status in (402, 403, 429) and _NO_CREDIT.search(self._code_of(exc) + message):
            return Refusal("call", message, MEANING[402][1])
        if status in (400, 413, 422) and not _BATCH.search(message) and _TOO_LONG.search(self._code_of(exc) + message):
            return Refusal("row", message)
        if status == 401 and self._foreign() and getattr(self, "api_key", None) is None:
            hint = "keys of this environment are not sent to an endpoint that stored metadata chose; "
            return Refusal("call", message, hint + "create the same function in your own code to use a key there")
        return super().explain(exc)

    def _code_of(self, exc: Exception) -> str:
        """Return the error code in the content of a response, as text."""
        body = getattr(exc, "body", None)
        inner = body.get("error") if isinstance(body, dict) else None
        found = [part.get(name) for part in (body, inner) if isinstance(part, dict) for name in ("code", "type")]
        return " ".join(str(code) for code in found if code) + " "

    def _address(self) -> str | None:
        return host_of(getattr(self, self.vendor.address_field, None) or self.vendor.url or "")

    def _held_secrets(self) -> list[str]:
        own = [value.strip() for name in self.vendor.key_names if (value := os.environ.get(name))]
        return [*super()._held_secrets(), *own]


class VendorFunction(VendorBase, RemoteTextFunction):  # type: ignore[misc]  # as RemoteTextFunction
    """A text function whose service takes one POST of JSON.

    A subclass defines `vendor`, its fields and `request(batch, role)`.
    """

    def _probe_width(self) -> None:
        self.generate_embeddings(["dimensions"])
