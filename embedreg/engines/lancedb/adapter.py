"""Make embedreg's functions usable in lancedb's models and registry, without patching lancedb.

LanceDB accepts subclasses of its own base class only, and resolves names in its own registry. So each name gets a thin
adapter class there, registered through lancedb's public `register`; an adapter delegates to one embedreg function.
Importing this module does that; it is imported automatically in a process that uses both libraries.

Over 400 lines: one adapter class, and what lancedb needs to find it.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, PrivateAttr, model_serializer

from embedreg import registry
from embedreg.arrow.quantized import QUANTIZED, Quantizer, Ranges
from embedreg.core import canonical, lancedb_hooks
from embedreg.core.base import EmbeddingFunction
from embedreg.core.kinds import kind_of, refusal
from embedreg.declaration import codec, entries, quantization, templates
from embedreg.embedding import column
from embedreg.embedding import schema as schemas
from embedreg.engines.lancedb import ranges
from embedreg.engines.lancedb.any_length import AnyLength
from embedreg.engines.lancedb.callers import asking_table, width_of
from embedreg.errors import ConfigError, SchemaError
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    from lancedb.embeddings.base import EmbeddingFunction as LanceBase
else:
    LanceBase = attempt_import_or_raise("lancedb.embeddings.base", "lancedb", extra="lancedb").EmbeddingFunction

__all__ = ["adapter_for", "adopt_vector_type", "answer", "offer", "offer_stored"]

log = logging.getLogger("embedreg")

SHOWN = 5  # bad rows of a batch that the log names


class Adapter(LanceBase):
    """Represents one embedreg function in lancedb: `embedreg_function`."""

    embedreg_alias: ClassVar[str] = ""
    _function: Any = PrivateAttr(default=None)
    _dtype: str | None = PrivateAttr(default=None)
    _template: str | None = PrivateAttr(default=None)
    _declared: Any = PrivateAttr(default=None)
    _ranges: Ranges | None = PrivateAttr(default=None)
    _handle: Any = PrivateAttr(default=None)

    @classmethod
    def create(cls, **model: Any) -> Adapter:
        """Rebuild from stored metadata when lancedb asks; a user's own call creates as embedreg does."""
        owner = registry.get(cls.embedreg_alias)
        if not lancedb_hooks.called_from("lancedb"):
            return adapter_for(owner.create(**model))
        width = width_of(cls.embedreg_alias, model) if owner.traits.width_defaults else None
        function, notes = codec.rebuild(owner, cls.embedreg_alias, codec.completed(owner, model, width))
        for note in notes:
            log.warning("%s", note)
        stored = model.get(codec.RESERVED)
        declared = stored if isinstance(stored, dict) else {}
        how = quantization.quantizer_of(declared)
        template = declared.get(templates.KEY)
        adapter = _new(
            function,
            entries.value_type(declared),
            declared,
            template if isinstance(template, str) else None,
            None if how is None else how.ranges,
        )
        if (table := asking_table()) is not None:
            adapter._handle = _TableHandle(table, model)
        return adapter

    @property
    def embedreg_function(self) -> EmbeddingFunction:
        """The function that does the work."""
        return self._function  # type: ignore[no-any-return]

    def _use(self) -> EmbeddingFunction:
        if self._function is None:
            raise ConfigError(
                f"{self.embedreg_alias!r} was constructed without a function.",
                f"get_registry().get({self.embedreg_alias!r}).create(...)",
            )
        return self._function  # type: ignore[no-any-return]

    def _now(self) -> Any:
        """Return the adapter of what the table declares now: this one, unless its declaration has changed since."""
        return self if self._handle is None else self._handle.now(self)

    def __getattribute__(self, name: str) -> Any:
        if name == "__embedding_function_registry_alias__":
            return codec.stored_name(self.embedreg_function, self._dtype)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        # Code that created the function through lancedb's registry reads its fields here.
        if not name.startswith("_") and (function := self._function) is not None:
            return getattr(function, name)
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from type checkers

    def safe_model_dump(self) -> dict[str, Any]:
        """Return the persisted form, which lancedb stores; if the table may exist already, what it records."""
        if (stored := _stored_model()) is not None:
            return stored
        model = codec.persisted_model(self._use(), written=False)
        model[codec.RESERVED].pop("dtype", None)
        if self._dtype is not None:  # else only lancedb knows the column's type
            model[codec.RESERVED]["dtype"] = self._dtype
        if self._template is not None:
            model[codec.RESERVED][templates.KEY] = self._template
        if self._ranges is not None:
            model[codec.RESERVED][quantization.KEY] = quantization.record_of(self._ranges)
        return model

    @model_serializer
    def _as_json(self) -> dict[str, Any]:
        return {"function": type(self).embedreg_alias}

    def SourceField(self, **kwargs: Any) -> Any:
        return self._use().SourceField(**kwargs)

    def VectorField(self, source: str | None = None, **kwargs: Any) -> Any:
        return self._use().VectorField(source, **kwargs)

    def _quantizer(self) -> Quantizer | None:
        """Return how stored values are made; None for floats."""
        return None if self._dtype not in QUANTIZED else Quantizer(self._dtype, self._use().ndims(), self._ranges)

    def ndims(self) -> int:
        """Return the number of stored values: lancedb drops vectors of another length."""
        ndims = self._use().ndims()
        if self._dtype in QUANTIZED:
            return Quantizer(self._dtype, ndims).width
        return ndims if kind_of(self._use()).one_size else AnyLength(ndims)

    def compute_source_embeddings(self, inputs: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed a column; a row without a vector is None, and lancedb's `on_bad_vectors` decides on it."""
        if (now := self._now()) is not self:
            return now.compute_source_embeddings_with_retry(inputs)  # type: ignore[no-any-return]
        how = self._quantizer()
        if how is not None and not how.known:
            raise ConfigError(
                f"the ranges of these {self._dtype} vectors are not known yet, and table.add cannot record them.",
                "embedreg.engines.lancedb.add(table, rows) learns them from its rows, and table.add uses them later; "
                f"or declare them: Vector(fn.ndims(), {self._dtype!r}, ranges=embedreg.calibrate(fn, texts))",
            )
        embedded = column.embed_column(self._use(), inputs, declared=self._declared)
        if self._dtype == "float16":
            column.fit_float16(self._use(), embedded, None)
        for row, reason in list(embedded.reasons.items())[:SHOWN]:
            log.warning("%s: row %d of the batch has no vector: %s", type(self).embedreg_alias, row, reason)
        if embedded.zeros is not None and not embedded.valid[embedded.zeros].any():
            what = f"{int(embedded.zeros.sum())} row(s) of the batch have a vector of zeros, invalid for cosine"
            log.warning("%s: %s; add(..., on_bad_vectors='null') takes them", type(self).embedreg_alias, what)
        rows: list[Any]
        if how is not None:
            rows = list(how.encode(embedded.matrix))
        else:  # a column that another writer declared may be of any float type
            rows = embedded.kind.to_objects(embedded.vectors, self._dtype)
        for index in (~embedded.valid).nonzero()[0].tolist():
            rows[index] = None
        return rows

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if (now := self._now()) is not self:
            return now.compute_query_embeddings_with_retry(query)  # type: ignore[no-any-return]
        how = self._quantizer()
        if how is not None and how.dtype != ranges.SEARCHED:
            raise ranges.not_searched(how.dtype)
        found = column.embed_query(self._use(), query, declared=self._declared)
        if (why := kind_of(self._use()).unsearchable_in_lancedb) is not None:
            raise refusal(self._use(), "a search in LanceDB", why)
        return [found] if how is None else list(how.encode(found[None]))

    # embed_column and embed_query retry by the function's own policy; lancedb's would retry programming errors too
    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        return self.compute_source_embeddings(*args, **kwargs)

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        return self.compute_query_embeddings(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        mine = self._function, self._dtype, self._template, self._ranges
        return isinstance(other, Adapter) and mine == (other._function, other._dtype, other._template, other._ranges)

    def __hash__(self) -> int:
        return hash((Adapter, self._function))

    def __reduce__(self) -> Any:
        return _new, (self._function, self._dtype, self._declared, self._template, self._ranges)


class _TableHandle:
    """The table handle that an adapter was rebuilt for.

    LanceDB rebuilds a handle's functions once and keeps them for good, while its schema follows the table. So each call
    compares the declaration with the one in the handle's current schema: about 0.2 ms.
    """

    def __init__(self, table: Any, model: dict[str, Any]) -> None:
        self._table = weakref.ref(table)
        self._model = model
        self._column: str | None = None
        self._seen: str | None = None  # metadata that still declared this very function

    def now(self, adapter: Adapter) -> Any:
        """Return what fills the adapter's column now.

        Raises:
            SchemaError: no function is declared for it any longer. MetadataError: the declarations cannot be read.
        """
        table = self._table()
        if table is None:  # the caller kept the function alone
            return adapter
        text = codec.serialized(table.schema.metadata)
        if text is not None and text == self._seen:
            return adapter
        found = {entry.vector_column: entry for entry in codec.entries({codec.KEY: text} if text else None)}
        kept = vars(table).get("embedding_functions") or {}
        if self._column is None:
            mine = (name for name, config in kept.items() if getattr(config, "function", None) is adapter)
            alike = (name for name, entry in found.items() if entry.model == self._model)
            self._column = next(mine, None) or next(alike, None)
        entry = found.get(self._column or "")
        if entry is not None and entry.model == self._model and _serves(adapter, entry.name):
            self._seen = text
            return adapter
        vars(table).pop("embedding_functions", None)
        if entry is None:
            where = "the column" if self._column is None else f"column {entries.shown(self._column)}"
            raise SchemaError(
                f"{where} no longer declares an embedding function.", "search with a vector, or open the table again"
            )
        offer_stored(list(found.values()))
        return table.embedding_functions[entry.vector_column].function


def _serves(adapter: Adapter, name: str | None) -> bool:
    return name is not None and name.removeprefix(f"{codec.RESERVED}:") == type(adapter).embedreg_alias


def _stored_model() -> dict[str, Any] | None:
    """Return what a local table records of a function that lancedb's `create_table(..., exist_ok=True)` asks about.

    LanceDB compares metadata byte for byte, where the probe and versions are recorded too. So the table's own record is
    returned if it declares the same; None if there is none, or it declares something else.
    """
    config: Any = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("lancedb."):
        values = frame.f_locals
        if frame.f_code.co_name == "function_to_metadata":
            config = values.get("conf")
        elif frame.f_code.co_name == "create_table" and {"self", "name", "mode", "exist_ok"} <= set(values):
            wanted = values["exist_ok"] or values["mode"] == "exist_ok"
            elsewhere = values.get("namespace_path") or values.get("location")
            if config is None or not wanted or elsewhere:
                return None
            return _recorded(config, os.path.join(str(getattr(values["self"], "uri", "")), f"{values['name']}.lance"))
        frame = frame.f_back
    return None


def _recorded(config: Any, path: str) -> dict[str, Any] | None:
    if not os.path.isdir(path):
        return None
    try:
        import lance  # the sync and the async client are both in their event loop here

        found = codec.entries(lance.dataset(path).schema.metadata)
    except (ImportError, OSError, RuntimeError, ValueError):
        return None
    for entry in found:
        if (entry.vector_column, entry.source_column) == (config.vector_column, config.source_column):
            template = getattr(config.function, "_template", None)
            same = codec.says_same(config, entry) and template == entry.reserved.get(templates.KEY)
            return entry.model if same else None
    return None


_classes: dict[str, type[Adapter]] = {}


def _adapter_class(alias: str) -> type[Adapter]:
    if alias not in _classes:
        namespace: dict[str, Any] = {"__module__": __name__, "__doc__": Adapter.__doc__, "embedreg_alias": alias}
        namespace["__annotations__"] = {"embedreg_alias": ClassVar[str]}
        _classes[alias] = type(f"embedreg adapter of {alias}", (Adapter,), namespace)
    return _classes[alias]


def _new(
    function: EmbeddingFunction,
    dtype: str | None = None,
    declared: dict[str, Any] | None = None,
    template: str | None = None,
    known: Ranges | None = None,
) -> Adapter:
    adapter = _adapter_class(canonical.registered_name(type(function)) or "")()
    adapter._function, adapter._dtype, adapter._declared = function, dtype, declared
    adapter._template, adapter._ranges = template, known
    return adapter


def adapter_for(function: EmbeddingFunction) -> Adapter:
    """Return the adapter of a function: one object per instance, since lancedb pairs columns by its identity."""
    key = f"lancedb:{id(function)}"  # an instance of one column shares its attributes with the first one
    if key not in function._adapters:
        function._adapters[key] = _new(function)
    return function._adapters[key]  # type: ignore[no-any-return]


# -- models ------------------------------------------------------------------------------------------------------------

_READ = {"get_extras": {"field_info"}, "parse_embedding_functions": {"cls", "func", "vec"}}
_pairs: weakref.WeakKeyDictionary[type, dict[str, tuple[str, Adapter]]] = weakref.WeakKeyDictionary()


def answer(function: EmbeddingFunction, role: str, asked_by: FrameType) -> Any:
    """Return what lancedb should find in a marked field of a model.

    LanceDB pairs sources and vectors by the identity of what their fields hold, over the cross product, and lets the
    last pair win. So each pair of a model has an adapter of its own, and a source field answers with the adapter of
    the vector in question, if it is that vector's source. Any other caller gets the function's adapter.

    Raises:
        SchemaError: the model's pairs are ambiguous, or a vector column has another width than its function.
    """
    from lancedb import pydantic as theirs

    asking = asked_by.f_back
    if asking is None or not (
        _is(asked_by, theirs, "get_extras") and _is(asking, theirs.LanceModel, "parse_embedding_functions")
    ):
        return adapter_for(function)
    model, field = asking.f_locals["cls"], asked_by.f_locals["field_info"]
    pairs = _pairs_of(model)
    name = next((name for name, info in model.model_fields.items() if info is field), None)
    if role == lancedb_hooks.VECTOR:
        return pairs[name][1] if name in pairs else adapter_for(function)
    source, _ = pairs.get(asking.f_locals["vec"], (None, None))
    return asking.f_locals["func"] if name is not None and source == name else None


def _is(frame: FrameType, owner: Any, name: str) -> bool:
    """Return whether a frame runs lancedb's function of that name, with the variables that `answer` reads."""
    code = frame.f_code
    return code is getattr(getattr(owner, name, None), "__code__", None) and _READ[name] <= {*frame.f_code.co_varnames}


def _pairs_of(model: type[BaseModel]) -> dict[str, tuple[str, Adapter]]:
    """Return {vector field: (source field, the pair's adapter)}."""
    if model not in _pairs:
        from lancedb.pydantic import pydantic_to_schema

        for info in model.model_fields.values():
            extra = info.json_schema_extra
            if type(extra) is dict and any(isinstance(value, Adapter) for value in extra.values()):
                info.json_schema_extra = lancedb_hooks.Marks(extra)  # pydantic merged it with other extras of the field
        types = {field.name: field.type for field in pydantic_to_schema(model)}
        pairs = {}
        found = schemas.pair(*schemas._markers(model.model_fields))
        schemas.refuse_templates(found, pydantic_to_schema(model))
        for source, vector in found:
            kind = types[vector.field]
            declared = schemas.declaration(source, vector, kind)
            quantization.refuse_in_lance(declared.value_type, vector.field)
            vectors, how = kind_of(vector.function), codec.quantizer(declared)
            ndims = codec.stated_ndims(vector.function, vectors.width_of(kind)) if how is None else how.ndims
            if not (vectors.fits(kind, ndims) if how is None else vectors.width_of(kind) == how.width):
                hint = vectors.type_hint.format(d="fn.ndims()")
                raise SchemaError(
                    f"{model.__name__}.{vector.field} is stored as {kind}, its function returns "
                    f"{vectors.described(ndims)}.",
                    f"{vector.field}: {hint} = fn.VectorField()",
                )
            made = _new(vector.function, declared.value_type, None, source.template, declared.ranges)
            pairs[vector.field] = source.field, made
        _pairs[model] = pairs
    return _pairs[model]


def adopt_vector_type(vector_type: type) -> None:
    """Make lancedb accept our vector type as one of its own."""
    from lancedb.pydantic import FixedSizeListMixin

    FixedSizeListMixin.register(vector_type)


# -- names -------------------------------------------------------------------------------------------------------------


def offer(name: str) -> None:
    """Register a function name with lancedb, in place of lancedb's own function of that name if there is one."""
    from lancedb.embeddings.registry import get_registry

    for alias in (name, f"{codec.RESERVED}:{name}"):
        get_registry().register(alias)(_adapter_class(name))


def install() -> None:
    """Register every known name with lancedb."""
    adopt_vector_type(schemas.VectorType)
    for name in registry.get_registry().list():
        offer(name)


def offer_stored(entries: list[codec.Entry]) -> None:
    """Register adapters for names unknown to lancedb, which then raises our error instead of a KeyError."""
    from lancedb.embeddings.registry import get_registry

    for entry in entries:
        if entry.name:
            try:
                get_registry().get(entry.name)
            except KeyError:
                offer(entry.name.removeprefix(f"{codec.RESERVED}:"))


install()
