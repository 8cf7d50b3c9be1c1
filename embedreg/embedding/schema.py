"""Pydantic models as Arrow schemas, with declarations that pair source and vector columns.

`Schema` needs no engine; LanceDB's `LanceModel` works in its place. `Vector(n)` and `MultiVector(n)` are field types in
both, `SparseVector(n)` in a `Schema` only, since a LanceModel has no type for it.

Over 400 lines: one mapping between pydantic and Arrow, in which types, markers and defaults depend on each other.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    NaiveDatetime,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from embedreg.arrow.kind import VectorKind
from embedreg.arrow.multi import MULTI
from embedreg.arrow.quantized import FLOATS, QUANTIZED, SCALARS, Quantizer, Ranges
from embedreg.arrow.sparse import SPARSE
from embedreg.arrow.values import NO_DEFAULTS, Defaults
from embedreg.arrow.vectors import DENSE
from embedreg.core import lancedb_hooks
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.core.kinds import kind_of
from embedreg.core.lancedb_hooks import EXPLICIT, SOURCE, TEMPLATE, VECTOR
from embedreg.errors import ConfigError, InputError, MissingColumnError, SchemaError
from embedreg.registry import get_registry

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MultiVector", "Schema", "SparseVector", "Vector", "resolve"]


# -- vectors -----------------------------------------------------------------------------------------------------------


class VectorType(list[Any]):
    """The base of every `Vector(n)`: a list of n numbers, stored as a fixed-size list."""

    _kind: ClassVar[VectorKind] = DENSE
    _dim: ClassVar[int]  # of stored values, which for quantised vectors may be fewer than the dimensions: `_ndims`
    _ndims: ClassVar[int]
    _value_type: ClassVar[str]
    _ranges: ClassVar[Ranges | None] = None
    _nullable: ClassVar[bool]

    @classmethod
    def dim(cls) -> int:
        """Return the number of values that are stored."""
        return cls._dim

    @classmethod
    def value_arrow_type(cls) -> pa.DataType:
        """Return the Arrow type of one value."""
        import pyarrow as pa

        if cls._value_type in QUANTIZED:
            return Quantizer(cls._value_type, cls._ndims).type().value_type
        return {"float16": pa.float16, "float32": pa.float32, "float64": pa.float64}[cls._value_type]()

    @classmethod
    def nullable(cls) -> bool:
        """Return whether a row may have no vector."""
        return cls._nullable

    @classmethod
    def _listed(cls) -> CoreSchema:
        """Return the form of a value in a model."""
        number = core_schema.int_schema() if cls._value_type in QUANTIZED else core_schema.float_schema()
        return core_schema.list_schema(number, min_length=cls._dim, max_length=cls._dim)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Run by the class body of a LanceModel: lancedb is loaded by then, if it will inspect this type.
        lancedb_hooks.adopt_vector_type(VectorType)
        numbers = cls._listed()
        listed = core_schema.chain_schema([core_schema.no_info_plain_validator_function(_as_list), numbers])
        checked = core_schema.no_info_after_validator_function(cls, listed)
        return core_schema.nullable_schema(checked) if cls._nullable else checked

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        number = "integer" if cls._value_type in QUANTIZED else "number"
        return {"type": "array", "items": {"type": number}, "minItems": cls._dim, "maxItems": cls._dim}


class MultiVectorType(VectorType):
    """The base of every `MultiVector(n)`: a list of lists of n floats."""

    _kind: ClassVar[VectorKind] = MULTI

    @staticmethod
    def is_multi_vector() -> bool:
        """Return True, by which lancedb recognises the type."""
        return True

    @classmethod
    def _listed(cls) -> CoreSchema:
        return core_schema.list_schema(super()._listed())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "array", "items": super().__get_pydantic_json_schema__(schema, handler)}


class SparseVectorType(dict[str, Any]):
    """The base of every `SparseVector(n)`: `{"indices": [...], "values": [...]}`."""

    _kind: ClassVar[VectorKind] = SPARSE
    _dim: ClassVar[int]
    _nullable: ClassVar[bool]

    @classmethod
    def dim(cls) -> int:
        """Return the number of dimensions."""
        return cls._dim

    @classmethod
    def nullable(cls) -> bool:
        """Return whether a row may have no vector."""
        return cls._nullable

    @classmethod
    def value_arrow_type(cls) -> pa.DataType:
        """Return the Arrow type of one weight."""
        import pyarrow as pa

        return pa.float32()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        index = core_schema.int_schema(ge=0, lt=cls._dim)
        lists = {
            "indices": core_schema.typed_dict_field(core_schema.list_schema(index)),
            "values": core_schema.typed_dict_field(core_schema.list_schema(core_schema.float_schema())),
        }
        listed = core_schema.chain_schema(
            [core_schema.no_info_plain_validator_function(_as_lists), core_schema.typed_dict_schema(lists)]
        )
        checked = core_schema.no_info_after_validator_function(cls, listed)
        return core_schema.nullable_schema(checked) if cls._nullable else checked

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        lists = {name: {"type": "array", "items": {"type": kind}} for name, kind in _LISTS.items()}
        return {"type": "object", "properties": lists, "required": list(lists)}


_LISTS = {"indices": "integer", "values": "number"}


def _as_lists(value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == len(_LISTS):
        value = dict(zip(_LISTS, value, strict=True))
    return {name: _as_list(each) for name, each in value.items()} if isinstance(value, dict) else value


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def Vector(
    dim: int | Callable[[], int], value_type: Any = "float32", nullable: bool = True, *, ranges: Any = None
) -> type[VectorType]:
    """Return the type of a vector column.

    Args:
        dim: the number of dimensions, or a callable that returns it, such as `fn.ndims`.
        value_type: "float32", "float16" or "float64", or the Arrow or numpy type of that name; or quantised, "int8",
            "uint8", "binary" or "ubinary", see `fn.bind`.
        nullable: whether a row may have no vector.
        ranges: for "int8" and "uint8", as `fn.bind`.
    Raises:
        SchemaError: a dimension that is not a positive integer, or an unknown value type. VectorError: invalid ranges.
    """
    name = getattr(value_type, "__name__", None) or value_name(value_type)
    if ranges is not None and name not in SCALARS:
        raise SchemaError(f"{name} vectors have no ranges.", "value_type='int8' or 'uint8' has")
    made: type[VectorType] = _made(VectorType, dim, "float32" if name in QUANTIZED else value_type, nullable)
    if name in QUANTIZED:
        known = None if ranges is None else Ranges.of(ranges)
        width = Quantizer(name, made._dim, known).width
        facts = {"_dim": width, "_ndims": made._dim, "_value_type": name, "_nullable": nullable, "_ranges": known}
        made = type(made.__name__, (VectorType,), facts)
    lancedb_hooks.adopt_vector_type(VectorType)
    return made


def MultiVector(
    dim: int | Callable[[], int], value_type: Any = "float32", nullable: bool = True
) -> type[MultiVectorType]:
    """Return the type of a column of multi-vectors: several vectors of `dim` dimensions in each row.

    Args:
        dim, nullable: as in `Vector`.
        value_type: "float32" or "float16".
    Raises:
        SchemaError: as `Vector`.
    """
    made: type[MultiVectorType] = _made(MultiVectorType, dim, value_type, nullable)
    lancedb_hooks.adopt_vector_type(VectorType)
    return made


def SparseVector(dim: int | Callable[[], int], nullable: bool = True) -> type[SparseVectorType]:
    """Return the type of a column of sparse vectors: `struct<indices: list<int32>, values: list<float32>>`.

    Args:
        dim, nullable: as in `Vector`.
    Raises:
        SchemaError: as `Vector`.
    """
    made: type[SparseVectorType] = _made(SparseVectorType, dim, "float32", nullable)
    return made


def _made(base: type[Any], dim: int | Callable[[], int], value_type: Any, nullable: bool) -> Any:
    kind: VectorKind = base._kind
    size = dim() if callable(dim) else dim
    hint = kind.type_hint.format(d="fn.ndims()")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise SchemaError(f"a vector needs a positive number of dimensions, got {size!r}.", hint)
    name = getattr(value_type, "__name__", None) or value_name(value_type)
    if name not in kind.value_types:
        known = " or ".join(repr(each) for each in kind.value_types[:2])
        raise SchemaError(f"a vector cannot hold {value_type!r}.", f"value_type={known}")
    return type(kind.type_hint.format(d=size), (base,), {"_dim": size, "_value_type": name, "_nullable": nullable})


# -- markers -----------------------------------------------------------------------------------------------------------


class Marker(typing.NamedTuple):
    """One marked field: its name and function; a vector's source and a source's template, where given."""

    field: str
    info: FieldInfo
    function: EmbeddingFunction
    source: str | None
    template: str | None = None


def _markers(fields: Mapping[str, FieldInfo]) -> tuple[list[Marker], list[Marker]]:
    """Return the source and the vector markers among some fields."""
    found: dict[str, list[Marker]] = {SOURCE: [], VECTOR: []}
    for name, info in fields.items():
        extra = info.json_schema_extra
        for role, markers in found.items():
            if isinstance(extra, dict) and isinstance(
                function := lancedb_hooks.unwrap(extra.get(role)), EmbeddingFunction
            ):
                explicit, template = extra.get(EXPLICIT), extra.get(TEMPLATE)
                texts = [each if isinstance(each, str) else None for each in (explicit, template)]
                markers.append(Marker(name, info, function, *texts))
    return found[SOURCE], found[VECTOR]


def pair(sources: list[Marker], vectors: list[Marker]) -> list[tuple[Marker, Marker]]:
    """Pair each vector field with its source field, by the identity of the function.

    Raises:
        SchemaError: a vector has no source, or several without naming one.
    """
    pairs = []
    for vector in vectors:
        own = [source for source in sources if source.function is vector.function]
        names = ", ".join(repr(source.field) for source in own)
        if vector.source is not None:
            own = [source for source in own if source.field == vector.source]
            if not own:
                raise SchemaError(
                    f"vector field {vector.field!r} names the source {vector.source!r}, which is not a source field of "
                    f"its function ({names or 'there is none'}).",
                    f"{vector.source}: str = fn.SourceField()",
                )
        if not own:
            raise SchemaError(
                f"vector field {vector.field!r} has no source field of the same function instance.",
                "mark one with that very instance, text: str = fn.SourceField(), or use a plain Vector(n) field",
            )
        if len(own) > 1:
            raise SchemaError(
                f"vector field {vector.field!r} could belong to any of the sources {names}.",
                f"name it: {vector.field}: ... = fn.VectorField(source={own[0].field!r})",
            )
        pairs.append((own[0], vector))
    return pairs


# -- schemas -----------------------------------------------------------------------------------------------------------


class Schema(BaseModel):
    """A pydantic model that is also an Arrow schema with its embedding functions declared.

    Raises:
        SchemaError: at class creation, for an ambiguous or missing source, a vector of the wrong width, or a type
            without an Arrow counterpart.
    """

    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        pairs = pair(*_markers(cls.model_fields))
        refuse_templates(pairs, arrow_fields(cls))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = handler(schema)
        for properties in handler.resolve_ref_schema(made).get("properties", {}).values():
            for key in (SOURCE, VECTOR, EXPLICIT, TEMPLATE):
                properties.pop(key, None)
        return made

    @classmethod
    def parse_embedding_functions(cls) -> list[EmbeddingFunctionConfig]:
        """Return the declarations of this schema's fields."""
        pairs = pair(*_markers(cls.model_fields))
        types = {item.name: item.type for item in arrow_fields(cls)}
        return [declaration(source, vector, types[vector.field]) for source, vector in pairs]

    @classmethod
    def to_arrow_schema(cls) -> pa.Schema:
        """Return the Arrow schema, with the declarations in its metadata."""
        import pyarrow as pa

        from embedreg.declaration import codec

        configs = cls.parse_embedding_functions()
        encoded = {codec.KEY: codec.encode(configs, written=False)} if configs else None
        return pa.schema(arrow_fields(cls), metadata=encoded)

    @classmethod
    def field_names(cls) -> list[str]:
        """Return the names of the columns."""
        return list(cls.model_fields)


def arrow_fields(model: type[BaseModel]) -> list[pa.Field]:
    """Return the Arrow fields of a pydantic model.

    Raises:
        SchemaError: a type without an Arrow counterpart.
    """
    import pyarrow as pa

    fields = []
    for name, info in model.model_fields.items():
        where = f"{model.__name__}.{name}"
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        function = lancedb_hooks.unwrap(extra.get(VECTOR))
        inner, nullable = _unwrap_optional(info.annotation)
        if isinstance(function, EmbeddingFunction):
            vector = _vector_class(inner)
            may_lack = vector is None or bool(vector.nullable())
            fields.append(pa.field(name, _vector_arrow_type(where, inner, function), nullable=may_lack))
        else:
            type_, optional = _arrow_type(where, info.annotation)
            fields.append(pa.field(name, type_, nullable=nullable or optional))
    return fields


def _vector_arrow_type(where: str, annotation: Any, function: EmbeddingFunction) -> pa.DataType:
    import pyarrow as pa

    from embedreg.declaration import codec

    kind = kind_of(function)
    right = f"{where.rpartition('.')[2]}: {kind.type_hint.format(d='fn.ndims()')} = fn.VectorField()"
    if (vector := _vector_class(annotation)) is not None:
        if (declared := _kind_declared(vector)) is not kind:
            raise SchemaError(f"{where} is declared as {declared.plural}, its function returns {kind.plural}.", right)
        stated = getattr(vector, "_ndims", vector.dim())
        ndims = codec.stated_ndims(function, stated)
        if stated != ndims:
            raise SchemaError(f"{where} is declared with {stated} dimensions, its function returns {ndims}.", right)
        return kind.arrow_type(vector.dim(), vector.value_arrow_type())
    if kind.one_size and get_origin(annotation) is list and get_args(annotation) == (float,):
        return pa.list_(pa.float32(), function.ndims())
    also = " or list[float]" if kind.one_size else ""
    raise SchemaError(
        f"{where} is a vector field of type {annotation!r}.", f"use {kind.type_hint.format(d='fn.ndims()')}{also}"
    )


def _kind_declared(vector: Any) -> VectorKind:
    """Return the kind of vectors of a vector type, ours or lancedb's."""
    theirs = MULTI if getattr(vector, "is_multi_vector", bool)() else DENSE
    return getattr(vector, "_kind", theirs)


def _vector_class(annotation: Any) -> Any:
    """Return a vector type, ours or lancedb's; both have the same three methods."""
    if isinstance(annotation, type) and hasattr(annotation, "value_arrow_type") and hasattr(annotation, "dim"):
        return annotation
    return None


def _unwrap_optional(annotation: Any) -> tuple[Any, bool]:
    """Split `X | None` into X and True."""
    if get_origin(annotation) is Annotated:
        return _unwrap_optional(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(rest) == 1 and len(rest) < len(get_args(annotation)):
            return _unwrap_optional(rest[0])[0], True
    return annotation, False


def _scalars() -> dict[Any, pa.DataType]:
    import pyarrow as pa

    return {
        str: pa.string(),
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        bytes: pa.binary(),
        dt.date: pa.date32(),
        dt.datetime: pa.timestamp("us"),
        NaiveDatetime: pa.timestamp("us"),
        AwareDatetime: pa.timestamp("us", "UTC"),
        dt.time: pa.time64("us"),
        dt.timedelta: pa.duration("us"),
        decimal.Decimal: pa.decimal128(38, 18),
        uuid.UUID: pa.string(),
    }


def _arrow_type(where: str, annotation: Any) -> tuple[pa.DataType, bool]:
    """Return the Arrow type of an annotation, and whether it is optional."""
    import pyarrow as pa

    inner, optional = _unwrap_optional(annotation)
    if inner in (scalars := _scalars()):
        return scalars[inner], optional
    origin, args = get_origin(inner), get_args(inner)
    if origin in (list, tuple, set, frozenset) and args and (origin is not tuple or args[1:] in ((), (...,))):
        return pa.list_(_arrow_type(where, args[0])[0]), optional  # items are nullable, as in LanceDB
    if origin is Literal:
        return _common(where, {type(value) for value in args}), optional
    if isinstance(inner, type):
        if (vector := _vector_class(inner)) is not None:
            made = _kind_declared(vector).arrow_type(vector.dim(), vector.value_arrow_type())
            return made, optional or bool(vector.nullable())
        if issubclass(inner, BaseModel):
            return pa.struct(arrow_fields(inner)), optional
        if issubclass(inner, enum.Enum):
            return _common(where, {type(member.value) for member in inner}), optional
    raise SchemaError(
        f"{where} has the type {annotation!r}, which has no Arrow counterpart here.",
        "use str, int, float, bool, bytes, date, datetime, time, timedelta, Decimal, UUID, lists, optionals, enums, "
        "nested models or Vector(n)",
    )


def _common(where: str, kinds: set[type]) -> pa.DataType:
    scalars = _scalars()
    if len(kinds) == 1 and (kind := kinds.pop()) in scalars:
        return scalars[kind]
    raise SchemaError(f"{where} mixes values of several types.", "give all values of an enum or Literal one type")


def defaults_of(schema: Any) -> Defaults:
    """Return the field defaults of a Schema or LanceModel class; empty for any other declaration."""
    return (
        _defaults(schema.model_fields) if isinstance(schema, type) and hasattr(schema, "model_fields") else NO_DEFAULTS
    )


def _defaults(fields: Mapping[str, FieldInfo]) -> Defaults:
    made: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    inner: dict[str, Defaults] = {}
    for name, info in fields.items():
        extra = info.json_schema_extra
        if not info.is_required() and not (isinstance(extra, dict) and VECTOR in extra):
            made[name] = _default(info)
        annotation = _unwrap_optional(info.annotation)[0]
        while get_origin(annotation) in (list, tuple, set, frozenset) and get_args(annotation):
            annotation = _unwrap_optional(get_args(annotation)[0])[0]
        if (
            isinstance(annotation, type)
            and issubclass(annotation, BaseModel)
            and (found := _defaults(annotation.model_fields))
        ):
            inner[name] = found
    return Defaults(made, {name: found for name, found in inner.items() if found.made or found.inner})


def _default(info: FieldInfo) -> Callable[[Mapping[str, Any]], Any]:
    if info.default_factory is None:
        return lambda row: info.default
    return lambda row: info.get_default(call_default_factory=True, validated_data=dict(row))


def refuse_templates(pairs: Iterable[tuple[Marker, Marker]], fields: Iterable[pa.Field]) -> None:
    """Check the templates of a model against its fields.

    Raises:
        SchemaError: a template reads a field that the model lacks, or of a type without a text form; or its texts have
            no nullable text field of their own.
    """
    from embedreg.arrow.templates import parse, refuse_type

    known = {item.name: item for item in fields}
    for source, vector in pairs:
        if source.template is None:
            continue
        try:
            vector.function.bind(source.field, vector.field, template=source.template)
            parsed = parse(source.template)
            parsed.refuse_missing(list(known), vector.field)
            for name in parsed.columns:
                refuse_type(name, known[name].type)
        except (ConfigError, InputError, MissingColumnError) as exc:
            raise SchemaError(f"field {source.field!r}: {exc.message}", exc.hint) from None
        if str(known[source.field].type) not in ("string", "large_string") or not known[source.field].nullable:
            raise SchemaError(
                f"field {source.field!r} holds the texts of a template, and must be a text that may be null.",
                f"{source.field}: str | None = fn.SourceField(template=...)",
            )


def declaration(source: Marker, vector: Marker, kind: pa.DataType) -> EmbeddingFunctionConfig:
    """Return the declaration of a pair of marked fields.

    Args:
        kind: the Arrow type of the vector's column.
    """
    declared = _vector_class(_unwrap_optional(vector.info.annotation)[0])
    name = getattr(declared, "_value_type", None) or value_name(kind_of(vector.function).value_type(kind))
    ranges = getattr(declared, "_ranges", None)
    return vector.function.bind(source.field, vector.field, template=source.template, dtype=name, ranges=ranges)


def value_name(kind: pa.DataType) -> str:
    """Return the numpy name of an Arrow type: "float16", "float32", "float64", "int8"."""
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))


class Resolved(typing.NamedTuple):
    """A resolved schema: its Arrow schema, if it has one, and its declarations."""

    arrow: pa.Schema | None
    configs: list[EmbeddingFunctionConfig]


def resolve(schema: Any) -> Resolved:
    """Return the Arrow schema (if any) and the declarations of a schema in any accepted form.

    Args:
        schema: a Schema or LanceModel class, one EmbeddingFunctionConfig or a list of them, a `pa.Schema` whose
            metadata holds declarations, or a result of this function.
    Raises:
        SchemaError: another type. EmbedregError: a declaration that cannot be rebuilt here.
    """
    from embedreg.declaration import codec, entries

    if isinstance(schema, Resolved):
        return schema
    pa = sys.modules.get("pyarrow")
    if pa is not None and isinstance(schema, pa.Schema):
        configs = get_registry().parse_functions(entries.metadata_with_widths(schema)).every()
        for config in configs:
            vectors = kind_of(config.function)
            if config.vector_column in schema.names and vectors.holds(kind := schema.field(config.vector_column).type):
                name = value_name(vectors.value_type(kind))
                if config.value_type is None and name in FLOATS:  # the record determines what integers stand for
                    config.value_type = name
        return Resolved(schema, configs)
    if isinstance(schema, type) and issubclass(schema, Schema):
        return Resolved(schema.to_arrow_schema(), schema.parse_embedding_functions())
    if isinstance(schema, type) and hasattr(schema, "to_arrow_schema") and hasattr(schema, "model_fields"):
        pairs = pair(*_markers(schema.model_fields))
        arrow = schema.to_arrow_schema()
        refuse_templates(pairs, arrow)
        return Resolved(arrow, [declaration(s, v, arrow.field(v.field).type) for s, v in pairs])
    given = [schema] if hasattr(schema, "vector_column") else schema
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | dict):
        listed = list(given)
        if all(hasattr(config, "vector_column") and hasattr(config, "source_column") for config in listed):
            own = [_own(config) for config in listed]
            codec.refuse_twice(config.vector_column for config in own)
            return Resolved(None, own)
    raise SchemaError(
        f"{schema!r} declares no embedding functions.",
        "pass a Schema class, fn.bind('source', 'vector'), a list of those, or an Arrow schema that carries them",
    )


def _own(config: Any) -> EmbeddingFunctionConfig:
    """Return a declaration as our class; one that was read keeps its stored entry."""
    from embedreg.declaration import codec

    function = lancedb_hooks.unwrap(config.function)
    if (entry := codec.entry_behind(config)) is not None:
        return codec.recorded(entry, function)
    made: EmbeddingFunctionConfig = function.bind(
        config.source_column,
        config.vector_column,
        template=getattr(config, "template", None),
        dtype=getattr(config, "value_type", None),
        ranges=getattr(config, "ranges", None),
    )
    return made
