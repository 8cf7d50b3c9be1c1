"""The registry: names to classes, wherever they come from, and what it says of them."""

import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, Field, SecretStr

import embedreg
from embedreg import EmbeddingFunctionRegistry, TextEmbeddingFunction, get_registry, register
from embedreg.errors import (
    ConfigError,
    DuplicateFunctionError,
    InputError,
    MissingExtraError,
    UnknownFunctionError,
)
from embedreg.registry import BUILTINS

registry = get_registry()


def make(name: str = "Lengths", **namespace: Any) -> type[TextEmbeddingFunction]:
    """Make a class that embeds a text as its length, at module level by its name."""
    body = {
        "__module__": __name__,
        "__qualname__": name,
        "ndims": lambda self: 1,
        "generate_embeddings": lambda self, texts: [[float(len(text))] for text in texts],
        **namespace,
    }
    return type(name, (TextEmbeddingFunction,), body)


def distribution(folder: Path, name: str, entry_points: str, **modules: str) -> None:
    """Lay an installed distribution out by hand: its metadata, its entry points, its modules."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[embedreg.functions]\n{entry_points}\n")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)


PLUGIN = """
from embedreg import TextEmbeddingFunction
class Plugged(TextEmbeddingFunction):
    def ndims(self): return 1
    def generate_embeddings(self, texts): return [[1.0] for _ in texts]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path to install distributions into; their modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    registry.reset()
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


# -- registering -------------------------------------------------------------------------------------------------------


def test_there_is_one_registry() -> None:
    """`get_instance`, `get_registry`, `register` and `get` all speak of the same one."""
    assert EmbeddingFunctionRegistry.get_instance() is registry is embedreg.get_registry()
    cls = register("one-registry")(make())
    assert registry.get("one-registry") is embedreg.get("one-registry") is cls


def test_a_class_is_registered_under_its_alias_or_its_own_name() -> None:
    """`@register("alias")`, `@register`, `@register()` and the registry's own method; each returns the class."""
    one, two, three, four = make("One"), make("Two"), make("Three"), make("Four")
    assert register("first")(one) is one is embedreg.get("first")
    assert register(two) is two is embedreg.get("Two")
    assert register()(three) is three is embedreg.get("Three")
    assert registry.register(four) is four is embedreg.get("Four")


def test_a_cell_can_be_run_again() -> None:
    """The same module and class name replaces the old class without a word."""
    register("cell")(make())
    again = make()
    register("cell")(again)
    assert embedreg.get("cell") is again


@pytest.mark.parametrize("form", ["alias", "bare", "called", "method"])
def test_another_class_of_the_same_name_replaces_with_a_warning(form: str) -> None:
    """The warning names both classes, and points at the line that registers."""
    register("Other")(make("Other", __qualname__="Outer.Other"))
    newcomer = make("Other")
    forms = {
        "alias": lambda: register("Other")(newcomer),
        "bare": lambda: register(newcomer),
        "called": lambda: register()(newcomer),
        "method": lambda: registry.register(newcomer),
    }
    with pytest.warns(UserWarning, match=r"'Other' was .*:Outer\.Other and is now .*:Other\.") as caught:
        forms[form]()
    assert caught[0].filename == __file__
    assert embedreg.get("Other") is newcomer


def test_a_builtin_can_be_replaced_with_a_warning_and_comes_back() -> None:
    """`reset` goes back to the built-ins; a user's names are unknown then."""
    builtin = embedreg.get("hashing")
    with pytest.warns(UserWarning, match="'hashing' was embedreg.functions"):
        register("hashing")(make())
    register("mine")(make())
    registry.reset()
    assert embedreg.get("hashing") is builtin
    assert "mine" not in registry.list()
    with pytest.raises(UnknownFunctionError):
        embedreg.get("mine")


@pytest.mark.parametrize("alias", ["", "  ", 3, b"name", ["name"], "embedreg:name", print])
def test_what_cannot_be_a_name_is_refused(alias: Any) -> None:
    """An empty text, another type, and the prefix that embedreg writes for itself."""
    with pytest.raises(ConfigError, match="cannot name a function"):
        register(alias)


@pytest.mark.parametrize("thing", [int, lambda texts: texts, object(), None])
def test_what_is_no_embedding_function_is_refused(thing: Any) -> None:
    """Neither another class nor a function or an instance can be registered."""
    with pytest.raises(InputError, match="subclass embedreg"):
        register("thing")(thing)


def test_lancedbs_own_classes_are_refused_with_the_way_out() -> None:
    """A class that still inherits from lancedb's base gets a hint with the right base."""
    from lancedb.embeddings import TextEmbeddingFunction as Lance

    class Ported(Lance):
        def ndims(self) -> int:
            return 1

        def generate_embeddings(self, texts: Any) -> Any:
            return [[0.0]] * len(texts)

    with pytest.raises(InputError, match=r"not lancedb's"):
        register("ported")(Ported)


def test_an_unfinished_class_is_refused_when_it_is_registered() -> None:
    """Its missing methods are named, before anybody's table depends on it."""

    class Unfinished(TextEmbeddingFunction):
        def ndims(self) -> int:
            return 1

    with pytest.raises(ConfigError, match="it lacks generate_embeddings"):
        register("unfinished")(Unfinished)
    assert "unfinished" not in registry.list()


# -- asking ------------------------------------------------------------------------------------------------------------


def test_the_builtins_are_listed_without_being_imported(run_python: Callable[..., str]) -> None:
    """`list` is sorted, and imports none of the modules it names."""
    code = (
        "import sys, embedreg; names = embedreg.get_registry().list(); assert names == sorted(names)\n"
        "print(set(names) >= {'hashing', 'openai', 'sentence-transformers'}, "
        "[m for m in sys.modules if m.startswith('embedreg.functions.')])"
    )
    assert run_python(code).strip() == "True []"


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_each_builtin_is_what_its_table_says(name: str) -> None:
    """Every path of the table leads to a class that can be described as built-in."""
    described = registry.describe(name)
    assert described["origin"] == "built-in"
    assert described["class"] == BUILTINS[name].replace(":", ".")
    assert described["doc"]
    json.dumps(described)


def test_an_unknown_name_gets_a_suggestion_and_the_ways_to_get_it() -> None:
    """The error is a KeyError that prints well: what is close, what there is, what to import or install."""
    registry.reset()  # of what other test files register as they are imported
    with pytest.raises(KeyError) as caught:
        embedreg.get("Sentence_Transformer")
    assert isinstance(caught.value, UnknownFunctionError)
    text = str(caught.value)
    assert "no embedding function is registered as 'Sentence_Transformer'" in text
    assert "did you mean 'sentence-transformers'?" in text
    assert "hashing, " in text
    assert "openai, " in text
    assert "pip install" in text


@pytest.mark.parametrize("name", [None, 3, ["hashing"], b"hashing"])
def test_a_name_of_another_type_is_unknown(name: Any) -> None:
    """Also what cannot be hashed."""
    with pytest.raises(UnknownFunctionError, match="is a str"):
        embedreg.get(name)


def test_the_name_that_embedreg_stores_is_understood() -> None:
    """`embedreg:hashing`, as declarations have it that stock LanceDB must not take, is `hashing`."""
    assert embedreg.get("embedreg:hashing") is embedreg.get("hashing")
    assert registry.describe("embedreg:hashing")["name"] == "hashing"


def test_describe_gives_the_fields_as_json_schema() -> None:
    """Types, defaults and choices of the fields; the first line of the docstring; where the class is from."""

    class Described(TextEmbeddingFunction):
        """Say what it is.

        And more.
        """

        model_config = ConfigDict(arbitrary_types_allowed=True)
        size: int = Field(default=3, ge=1)
        key: SecretStr | None = SecretStr("$var:k")
        client: threading.Event | None = None
        when: Any = threading.Event()

        def ndims(self) -> int:
            return 1

        def generate_embeddings(self, texts: Any) -> Any:
            return [[0.0]] * len(texts)

    register("described")(Described)
    found = registry.describe("described")
    assert found["doc"] == "Say what it is."
    assert found["origin"] == f"registered in {__name__}"
    assert (found["modality"], found["extra"], found["remote"], found["installed"]) == ("text", None, False, True)
    assert found["config"]["properties"]["size"] == {"default": 3, "minimum": 1, "title": "Size", "type": "integer"}
    assert "client" in found["config"]["properties"]
    json.dumps(found)


def test_describe_says_what_is_missing() -> None:
    """A class whose libraries are not there is described, with what it lacks; a dotted name is found."""
    traits = embedreg.Traits(requires=("json", "no_such_module_here.inner"), extra="some")
    cls = make("Lacking")
    cls.traits = traits
    register("lacking")(cls)
    found = registry.describe("lacking")
    assert (found["installed"], found["missing"], found["extra"]) == (False, ["no_such_module_here.inner"], "some")


# -- plug-ins ----------------------------------------------------------------------------------------------------------


def test_an_entry_point_is_read_by_name_and_imported_on_demand(site: Path) -> None:
    """The name is listed first; the module is imported when the function is asked for; a nested class is found."""
    nested = PLUGIN + "class Holder:\n    Inner = Plugged\n"
    distribution(site, "some-plugin", "plugged = plugged_here:Holder.Inner", plugged_here=nested)
    assert "plugged" in registry.list()
    assert "plugged_here" not in sys.modules
    cls = embedreg.get("plugged")
    assert cls.create().generate_embeddings(["a"]) == [[1.0]]
    assert embedreg.get("plugged") is cls


def test_two_distributions_that_claim_one_name_are_both_named(site: Path) -> None:
    """Neither wins, nothing is imported, and `register` is the way to choose."""
    distribution(site, "plugin-one", "shared = module_one:Plugged", module_one=PLUGIN)
    distribution(site, "plugin-two", "shared = module_two:Plugged", module_two=PLUGIN)
    with pytest.raises(DuplicateFunctionError, match=r"plugin-(one|two) .* and by plugin-(one|two) "):
        embedreg.get("shared")
    assert not {"module_one", "module_two"} & set(sys.modules)
    chosen = register("shared")(make())
    assert embedreg.get("shared") is chosen


def test_a_plugin_cannot_take_a_builtins_name(site: Path) -> None:
    """A claim to `hashing` names embedreg and the claimant."""
    distribution(site, "greedy-plugin", "hashing = greedy_module:Plugged", greedy_module=PLUGIN)
    with pytest.raises(DuplicateFunctionError, match=r"embedreg .* and by greedy-plugin"):
        embedreg.get("hashing")


@pytest.mark.parametrize(
    ("entry", "source", "error", "said"),
    [
        ("mod_a:Plugged", "import no_such_thing_here", MissingExtraError, "no_such_thing_here"),
        ("mod_a:Plugged", "raise RuntimeError('out of order')", MissingExtraError, "RuntimeError: out of order"),
        ("mod_a:Plugged", "def (", MissingExtraError, "SyntaxError"),
        ("mod_a:Gone", PLUGIN, MissingExtraError, "Gone"),
        ("mod_a", PLUGIN, MissingExtraError, "cannot be imported"),
        ("no_module_here:Plugged", PLUGIN, MissingExtraError, "no_module_here"),
        ("mod_a:Plugged", "Plugged = dict", InputError, "is not an embedreg embedding function class"),
        (
            "mod_a:Plugged",
            "from embedreg import TextEmbeddingFunction as Plugged",
            ConfigError,
            "it lacks generate_embeddings",
        ),
    ],
)
def test_a_broken_plugin_is_named(site: Path, entry: str, source: str, error: type[Exception], said: str) -> None:
    """Whatever is wrong with its module, the error is embedreg's, names the distribution, and the rest still works."""
    distribution(site, "broken-plugin", f"broken = {entry}", mod_a=source)
    for _ in range(2):
        with pytest.raises(error, match="broken-plugin") as caught:
            embedreg.get("broken")
        assert said in str(caught.value)
    assert "broken" in registry.list()
    assert embedreg.get("hashing")


def test_a_plugin_may_register_itself_as_well(site: Path) -> None:
    """A decorated class that is also an entry point is one class under one name, and there is no warning."""
    source = PLUGIN.replace("class", "from embedreg import register\n@register('both')\nclass")
    distribution(site, "both-plugin", "both = module_both:Plugged", module_both=source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embedreg.get("both") is sys.modules["module_both"].Plugged


def test_a_plugins_own_missing_extra_is_passed_on(site: Path) -> None:
    """What the plug-in says of the library it needs is not wrapped."""
    source = "import embedreg\nembedreg.attempt_import_or_raise('no_such_module_here', 'that-package')\n"
    distribution(site, "needy-plugin", "needy = needy_module:Plugged", needy_module=source)
    with pytest.raises(MissingExtraError, match="pip install that-package"):
        embedreg.get("needy")


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_may_register_and_ask_at_once() -> None:
    """Eight threads register, list and get; each finds what it registered."""
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                cls = register(f"t{number}-{turn}")(make(f"T{number}"))
                assert embedreg.get(f"t{number}-{turn}") is cls
                assert f"t{number}-{turn}" in registry.list()
        except BaseException as exc:  # noqa: BLE001 (handed to the main thread)
            problems.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_asking_for_a_plugin_while_another_thread_imports_it_does_not_deadlock(site: Path) -> None:
    """The module registers itself in the middle of its import, while the first thread waits for that import."""
    source = (
        "import time, threading\nimport slow_gate\nslow_gate.started.set()\nslow_gate.asked.wait(5)\ntime.sleep(0.1)\n"
        + PLUGIN.replace("class", "from embedreg import register\n@register('slow')\nclass")
    )
    gate = "import threading\nstarted, asked = threading.Event(), threading.Event()\n"
    distribution(site, "slow-plugin", "slow = slow_module:Plugged", slow_module=source, slow_gate=gate)
    import slow_gate  # type: ignore[import-not-found]

    found: list[Any] = []
    importer = threading.Thread(target=lambda: __import__("slow_module"), daemon=True)
    importer.start()
    assert slow_gate.started.wait(5)
    asker = threading.Thread(target=lambda: found.append(embedreg.get("slow")), daemon=True)
    asker.start()
    time.sleep(0.05)
    slow_gate.asked.set()
    importer.join(10)
    asker.join(10)
    assert [cls.__name__ for cls in found] == ["Plugged"]


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "BAAI/bge-small-en-v1.5", "text-embedding-3-small"])
def test_a_models_name_is_not_a_functions(name: str) -> None:
    """The name of a model in place of a function's is answered with the function that takes it, in both languages."""
    with pytest.raises(UnknownFunctionError) as caught:
        embedreg.get(name)
    function = "openai" if name.startswith("text") else "sentence-transformers"
    assert f"get({function!r}).create(name={name!r})" in str(caught.value.hint)
    assert f"-f {function} --set name={name}" in str(caught.value.shell_hint)


@pytest.mark.parametrize(
    ("function", "key", "field"),
    [("sentence-transformers", "model", "name"), ("sentence-transformers", "model_name", "name"),
     ("hashing", "dimensions", "dim"), ("openai", "endpoint", "base_url"), ("openai", "timeout", "timeout_s"),
     ("open-clip", "threads", "num_threads"), ("hashing", "dmi", "dim")],
)  # fmt: skip
def test_another_librarys_name_of_a_field(function: str, key: str, field: str) -> None:
    """A field by another library's name, or mistyped, is answered with its name here."""
    with pytest.raises(ConfigError) as caught:
        embedreg.get(function).create(**{key: "x"})
    assert f"did you mean {field!r}?" in str(caught.value.hint)


def test_a_second_registry_reads_what_it_wrote() -> None:
    """Its classes are its own: what it declares it rebuilds, and the registry of the process does not know the name."""
    second = EmbeddingFunctionRegistry()
    cls = make("KnownToTheSecond")
    second.register("known-to-the-second")(cls)
    metadata = second.get_table_metadata([cls.create().bind("text", "vector")])
    assert second.parse_functions(metadata)["vector"].function == cls.create()
    assert second.get("known-to-the-second") is cls
    problem = registry.parse_functions(metadata).problems["vector"]
    assert isinstance(problem, UnknownFunctionError)
