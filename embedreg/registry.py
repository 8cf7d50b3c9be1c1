"""The registry of embedding functions: a table of built-ins, entry points of plug-ins, and registered classes."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind

from embedreg.core import lancedb_hooks, modality
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.core.canonical import OWN_PREFIX
from embedreg.errors import ConfigError, DuplicateFunctionError, InputError, MissingExtraError, UnknownFunctionError
from embedreg.security import references
from embedreg.support.forks import ForkSafeLock
from embedreg.support.imports import did_you_mean, importable
from embedreg.support.lazy import load

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

    from embedreg.declaration.codec import Functions

__all__ = ["BUILTINS", "EmbeddingFunctionRegistry", "get", "get_registry", "register"]

BUILTINS = {
    "azure-openai": "embedreg.functions.openai:AzureOpenAIEmbeddings",
    "bedrock-text": "embedreg.functions.bedrock_text:BedrockTextEmbeddings",
    "clap": "embedreg.functions.clap:ClapEmbeddings",
    "cohere": "embedreg.functions.cohere:CohereEmbeddings",
    "cohere-multimodal": "embedreg.functions.cohere_multimodal:CohereMultimodalEmbeddings",
    "colbert": "embedreg.functions.sentence_transformers.huggingface:ColbertEmbeddings",
    "colpali": "embedreg.functions.colpali:ColPaliEmbeddings",
    "gemini-text": "embedreg.functions.gemini_text:GeminiTextEmbeddings",
    "gte-text": "embedreg.functions.sentence_transformers.gte_text:GteEmbeddings",
    "hashing": "embedreg.functions.hashing:HashingEmbeddings",
    "hashing-sparse": "embedreg.functions.hashing.sparse:HashingSparse",
    "huggingface": "embedreg.functions.sentence_transformers.huggingface:TransformersEmbeddings",
    "huggingface-inference": "embedreg.functions.huggingface_inference:HuggingFaceInferenceEmbeddings",
    "instructor": "embedreg.functions.sentence_transformers.instructor:InstructorEmbeddings",
    "jina": "embedreg.functions.jina:JinaEmbeddings",
    "late-interaction": "embedreg.functions.sentence_transformers.late_interaction:LateInteractionEmbeddings",
    "jina-clip": "embedreg.functions.jina_clip:JinaClipEmbeddings",
    "litellm": "embedreg.functions.litellm:LiteLLMEmbeddings",
    "mistral": "embedreg.functions.mistral:MistralEmbeddings",
    "ollama": "embedreg.functions.ollama:OllamaEmbeddings",
    "open-clip": "embedreg.functions.open_clip:OpenClipEmbeddings",
    "openai": "embedreg.functions.openai:OpenAIEmbeddings",
    "sentence-transformers": "embedreg.functions.sentence_transformers:SentenceTransformerEmbeddings",
    "sentence-transformers-multimodal": "embedreg.functions.sentence_transformers.multimodal:MultimodalEmbeddings",
    "siglip": "embedreg.functions.siglip:SiglipEmbeddings",
    "splade": "embedreg.functions.sentence_transformers.splade:SpladeEmbeddings",
    "static": "embedreg.functions.static:StaticEmbeddings",
    "tei": "embedreg.functions.tei:TextEmbeddingsInference",
    "vertex": "embedreg.functions.vertex:VertexEmbeddings",
    "voyageai": "embedreg.functions.voyageai:VoyageAIEmbeddings",
    "voyageai-multimodal": "embedreg.functions.voyageai_multimodal:VoyageAIMultimodalEmbeddings",
    "watsonx": "embedreg.functions.watsonx:WatsonxEmbeddings",
}
# Functions of LanceDB's that are not built in: what they are. Their declarations are kept, and explained.
RECOGNISED = {
    "imagebind": "images, texts and sounds in one space, with a library that needs torch 1.13",
}
ENTRY_POINT_GROUP = "embedreg.functions"

_LISTED = 24  # names that an error lists; `embedreg functions` shows all

_MODEL = re.compile(r"(?i)minilm|mpnet|bert|^bge-|^e5-|^gte-|-v\d|text-embedding|embed-text")

_ROLE = re.compile(r"(query|source|document)_(prompt|prompt_name|input_type|task|task_type|instruction|options)")

F = TypeVar("F", bound=type[EmbeddingFunction])
Names: TypeAlias = list[str]  # `list` is a method of the registry
_Points: TypeAlias = list[EntryPoint]


class _FieldSchema(GenerateJsonSchema):
    """JSON schema of any class; a field whose type has no JSON form accepts anything and has no default."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 (pydantic's own attribute)

    def handle_invalid_for_json_schema(self, schema: CoreSchema, error_info: str) -> JsonSchemaValue:
        return {}


class EmbeddingFunctionRegistry:
    """Maps names to embedding function classes; `get_instance()` returns the registry of this process."""

    def __init__(self) -> None:
        self._registered: dict[str, type[EmbeddingFunction]] = {}
        self._plugins: dict[str, _Points] | None = None
        self._lock = ForkSafeLock()

    @classmethod
    def get_instance(cls) -> EmbeddingFunctionRegistry:
        """Return the registry of this process."""
        return _REGISTRY

    # -- names ------------------------------------------------------------------------------------------------------

    @overload
    def register(self, alias: F) -> F: ...
    @overload
    def register(self, alias: str | None = None) -> Callable[[F], F]: ...
    def register(self, alias: Any = None) -> Any:
        """Register a class: `@register("alias")`, or `@register` and `@register()` for the class's own name.

        Registering a name again replaces the class, so that a notebook cell can be run again; a warning is issued if
        it is a different class.

        Raises:
            InputError: not an embedreg embedding function class.
            ConfigError: an alias that cannot be a name, or a class that still has abstract methods.
        """
        if isinstance(alias, type):
            return self._register(alias.__name__, alias)
        if alias is not None and (not isinstance(alias, str) or not alias.strip() or alias.startswith(OWN_PREFIX)):
            raise ConfigError(f"{alias!r} cannot name a function.", "use a short text such as 'my-embedder'")

        def decorate(cls: Any) -> Any:
            return self._register(alias if alias is not None else str(getattr(cls, "__name__", "")), cls)

        return decorate

    def _register(self, name: str, cls: Any, *, quietly: bool = False) -> Any:
        if not (isinstance(cls, type) and issubclass(cls, EmbeddingFunction)):
            raise InputError(
                f"{cls!r} is not an embedreg embedding function class.",
                "subclass embedreg.EmbeddingFunction or embedreg.TextEmbeddingFunction (not lancedb's)",
            )
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))
            raise ConfigError(f"{cls.__name__} cannot be created yet: it lacks {missing}.", f"define {missing}()")
        path = f"{cls.__module__}:{cls.__qualname__}"
        with self._lock:
            old = self._registered.get(name)
            old_path = f"{old.__module__}:{old.__qualname__}" if old is not None else BUILTINS.get(name, path)
            self._registered[name] = cls
            cls.__embedding_function_registry_alias__ = name
        if old_path != path and not quietly:
            warnings.warn(f"{name!r} was {old_path} and is now {path}.", stacklevel=_stack_above(__name__))
        lancedb_hooks.announce(name)
        return cls

    def get(self, name: str) -> type[EmbeddingFunction]:
        """Return the class registered under a name, importing it if necessary.

        Raises:
            UnknownFunctionError: no such name; the hint suggests the closest one, or what to install.
            DuplicateFunctionError: two distributions register it.
            MissingExtraError: its module needs a library that is not installed, or fails to import.
            InputError, ConfigError: the plug-in's object of that name is not an embedding function class.
        """
        if not isinstance(name, str):
            raise UnknownFunctionError(f"a function's name is a str, not {type(name).__name__}.", "get('hashing')")
        name = name.removeprefix(OWN_PREFIX)
        with self._lock:
            if (known := self._registered.get(name)) is not None:
                return known
            plugins = self._entry_points().get(name, [])
        claims = [(_owner(point), f"{point.module}:{point.attr}") for point in plugins]
        if name in BUILTINS:
            claims.insert(0, ("embedreg", BUILTINS[name]))
        if len(claims) > 1:
            raise DuplicateFunctionError(
                f"{name!r} is claimed by {' and by '.join(f'{who} ({path})' for who, path in claims)}.",
                f"uninstall one of them, or register the one you mean: register({name!r})(TheClass)",
            )
        if not claims:
            raise self._unknown(name)
        return self._load(name, *claims[0])

    def _load(self, name: str, who: str, path: str) -> type[EmbeddingFunction]:
        """Import a class and register it, without a lock: the import may wait for an import in another thread."""
        problem: Exception
        try:
            cls: Any = load(path)
        except MissingExtraError:
            raise
        except Exception as exc:  # a plug-in's module may fail in any way
            reason = str(exc) if isinstance(exc, ImportError) else f"{type(exc).__name__}: {exc}"
            raise MissingExtraError(
                f"{name!r} from {who} cannot be imported: {reason}.", f"reinstall {who}, or pip install what it needs"
            ) from exc
        with self._lock:
            if (known := self._registered.get(name)) is not None:  # the module or another thread has registered it
                return known
        try:
            return self._register(name, cls, quietly=True)  # type: ignore[no-any-return]  # checked there
        except (ConfigError, InputError) as exc:
            problem = type(exc)(f"{name!r} from {who}: {exc.message}", exc.hint)
        raise problem

    def _entry_points(self) -> dict[str, _Points]:
        """Read the entry points once: name -> one entry point per distribution that registers it."""
        if self._plugins is None:
            found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
            for point in entry_points(group=ENTRY_POINT_GROUP):
                # one distribution can be listed twice (an editable install beside its metadata)
                found.setdefault(point.name, {})[_owner(point), point.value] = point
            self._plugins = {name: [*points.values()] for name, points in found.items()}
        return self._plugins

    def _unknown(self, name: str) -> UnknownFunctionError:
        known = self.list()
        left = len(known) - _LISTED
        registered = f"Registered: {', '.join(known[:_LISTED])}{f' and {left} more' if left > 0 else ''}."
        if "/" in name or _MODEL.search(name):  # a model name instead of a function name
            other = "openai" if name.startswith("text-embedding-") else "sentence-transformers"
            return UnknownFunctionError(
                f"no embedding function is registered as {name!r}; it reads like a model's name.",
                f"did you mean get({other!r}).create(name={name!r})? {registered}",
            ).for_shell(f"did you mean -f {other} --set name={shlex.quote(name)}? {registered}")
        if name in RECOGNISED:
            return UnknownFunctionError(
                f"{name!r} is a function of LanceDB's that embedreg does not have: {RECOGNISED[name]}.",
                f"its declaration stays as it is; a class of your own can be registered for it: @register({name!r})",
            ).for_shell("its declaration stays as it is; a class of your own can stand for it: --import FILE.py")
        meant = f"{did_you_mean(name, known)}{registered} If it is your own class,"
        return UnknownFunctionError(
            f"no embedding function is registered as {name!r}.",
            f"{meant} import the module that registers it; if it comes with a plug-in, pip install that "
            f"(entry-point group {ENTRY_POINT_GROUP!r}).",
        ).for_shell(f"{meant} name the file that registers it: --import FILE.py; a plug-in is found once installed.")

    def list(self) -> Names:
        """Return every name, sorted: built-in, from installed plug-ins, and registered in this process."""
        with self._lock:
            return sorted({*BUILTINS, *self._entry_points(), *self._registered})

    def describe(self, name: str) -> dict[str, Any]:
        """Describe the function registered under a name.

        Returns:
            `name`, `class`, `doc`, `modality`, `remote`, `extra`, `installed`, `missing` (modules), `origin`
            ("built-in", "plug-in <distribution> <version>" or "registered in <module>"), `config` (the fields, as
            JSON schema; a type without a JSON form accepts anything), `group` ("local text", "hosted text", "images",
            "recordings" or "other"), `lancedb` (whether LanceDB has a function of this name), `roles` (the fields that
            make queries and sources different), and of remote functions `limits`, `models`, `keys` and `documentation`.
        Raises:
            UnknownFunctionError, DuplicateFunctionError, MissingExtraError: as `get`.
        """
        cls = self.get(name)
        alias = name.removeprefix(OWN_PREFIX)
        wanted = (cls.traits.requires, *cls.traits.alternatives)
        lacking = [[module for module in modules if not importable(module)] for modules in wanted]
        missing = [] if [] in lacking else lacking[0]
        return {
            "name": alias,
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "doc": inspect.cleandoc(cls.__doc__ or "").partition("\n")[0],
            "modality": cls.traits.modality,
            "remote": cls.traits.remote,
            "extra": cls.traits.extra,
            "installed": not missing,
            "missing": missing,
            "origin": self._origin(alias, cls),
            "config": cls.model_json_schema(schema_generator=_FieldSchema),
            "group": _group(cls),
            "lancedb": cls.traits.stock_fields is not None,
            "roles": [name for name in cls.model_fields if _ROLE.fullmatch(name)],
            **cls._facts(),
        }

    def _origin(self, name: str, cls: type[EmbeddingFunction]) -> str:
        path = f"{cls.__module__}:{cls.__qualname__}"
        if BUILTINS.get(name) == path:
            return "built-in"
        for point in self._entry_points().get(name, []):
            if f"{point.module}:{point.attr}" == path and point.dist is not None:
                return f"plug-in {point.dist.name} {point.dist.version}"
        return f"registered in {cls.__module__}"

    def reset(self) -> None:
        """Reset to the built-ins and installed plug-ins, and remove grants, allowances and vouched instances.

        Variables stay, since they belong to the process.
        """
        from embedreg.core import vouched
        from embedreg.media import allowances
        from embedreg.security import grants

        with self._lock:
            self._registered.clear()
            self._plugins = None
        grants.reset()
        vouched.reset()
        allowances.reset()

    # -- declarations -----------------------------------------------------------------------------------------------

    def parse_functions(self, metadata: Mapping[Any, Any] | None) -> Functions:
        """Rebuild the functions that schema metadata declares: {vector column: EmbeddingFunctionConfig}.

        Functions that cannot be rebuilt are in `.problems` of the result, and raise when their column is looked up.

        Raises:
            MetadataError: the metadata as a whole cannot be read.
        """
        from embedreg.declaration import codec as form

        return form.parse(metadata, self.get)

    def function_to_metadata(self, conf: EmbeddingFunctionConfig) -> dict[str, Any]:
        """Return the stored form of one declaration."""
        from embedreg.declaration import codec as form

        return form.entry_of(conf, written=False)

    def get_table_metadata(self, func_list: Iterable[EmbeddingFunctionConfig] | None) -> dict[str, bytes] | None:
        """Return the schema metadata for some declarations, or None for none."""
        from embedreg.declaration import codec as form

        configs = list(func_list or [])
        return {form.KEY: form.encode(configs, written=False)} if configs else None

    # -- variables --------------------------------------------------------------------------------------------------

    def set_var(self, name: str, value: str, functions: Names | None = None) -> None:
        """Set the value of `$var:name` in this process.

        Args:
            name: without colons.
            value: a str; it is kept in memory only.
            functions: the only functions that may use it in stored metadata; all by default.
        Raises:
            ConfigError: an invalid name or value.
        """
        references.variables.set(name, value, functions)

    def get_var(self, name: str) -> str:
        """Return a variable's value, or raise `MissingVariableError`."""
        return references.variables.get(name)

    def bind_env(self, name: str, env: str, functions: Names | None = None) -> None:
        """Bind `$var:name` to an environment variable; pickles carry the binding, never the value."""
        references.variables.bind_env(name, env, functions)

    def variables(self, **values: str) -> AbstractContextManager[None]:
        """Set variables for the `with` block, in this thread or task only."""
        return references.variables.scope(values)


def _group(cls: type[EmbeddingFunction]) -> str:
    """Return the heading that a listing shows a class under."""
    kind = modality.MODALITIES.get(cls.traits.modality.partition("+")[0])  # that of source rows
    if kind is modality.TEXT:
        return "hosted text" if cls.traits.remote else "local text"
    return kind.plural if kind is not None and kind in (modality.IMAGE, modality.AUDIO) else "other"


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"


def _stack_above(module: str) -> int:
    """Return the stacklevel, for a warning of our caller, of the first frame outside a module."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == module:
        level, frame = level + 1, frame.f_back
    return level


_REGISTRY = EmbeddingFunctionRegistry()


@overload
def register(alias: F) -> F: ...
@overload
def register(alias: str | None = None) -> Callable[[F], F]: ...
def register(alias: Any = None) -> Any:
    """Register a class in this process's registry; see `EmbeddingFunctionRegistry.register`."""
    return _REGISTRY.register(alias)


def get_registry() -> EmbeddingFunctionRegistry:
    """Return the registry of this process."""
    return _REGISTRY


def get(name: str) -> type[EmbeddingFunction]:
    """Return the class registered under a name; short for `get_registry().get(name)`."""
    return _REGISTRY.get(name)
