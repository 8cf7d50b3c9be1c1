"""What stored metadata may not set unasked is known by name and by type, all the way down."""

import dataclasses
import ipaddress
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NewType, Optional, TypeVar, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import (
    AnyUrl,
    BaseModel,
    BeforeValidator,
    DirectoryPath,
    Field,
    FilePath,
    HttpUrl,
    ImportString,
    IPvAnyAddress,
    IPvAnyNetwork,
    Json,
    NewPath,
    PostgresDsn,
    SkipValidation,
    create_model,
)
from typing_extensions import TypeAliasType, TypedDict

import embedreg
from embedreg.core.guarding import guard_by_name
from embedreg.errors import UntrustedError
from tests.declared import LENGTHS, Base, stored
from tests.watched import nothing_touched

Folder = NewType("Folder", pathlib.Path)
Alias = TypeAliasType("Alias", list["pathlib.Path"])
P = TypeVar("P", bound=pathlib.Path)


class Typed(TypedDict, total=False):
    """A typed dict."""

    where: pathlib.Path
    n: int


class Named(NamedTuple):
    """A named tuple."""

    where: pathlib.Path
    n: int


class Sub(BaseModel):
    """A nested model."""

    where: pathlib.Path = pathlib.Path("usual")
    n: int = 1
    other: "list[Sub]" = []
    spelled: Annotated[pathlib.Path, Field(alias="Else")] = pathlib.Path("usual")


@dataclasses.dataclass
class Data:
    """A nested dataclass."""

    where: pathlib.Path
    n: int = 1


KINDS: list[tuple[Any, Any]] = [
    (list[pathlib.Path], ["models"]),
    (set[pathlib.PurePath] | None, ["models"]),
    (tuple[int, pathlib.Path], [1, "models"]),
    (Sequence[Optional[pathlib.Path]], [None, "models"]),  # noqa: UP045 (the older spelling is tried)
    (dict[str, pathlib.Path], {"a": "models"}),
    (dict[pathlib.Path, int], {"models": 1}),
    (Mapping[str, list[dict[str, FilePath]]], {"a": [{"b": "models"}]}),
    (Union[int, str, pathlib.Path], "models"),  # noqa: UP007
    (Annotated[pathlib.Path | None, "of models"], "models"),
    (SkipValidation[pathlib.Path], "models"),
    (DirectoryPath, "models"),
    (NewPath, "models"),
    (os.PathLike[str], "models"),
    (Folder, "models"),
    (Alias, ["models"]),
    (P, "models"),  # type: ignore[valid-type]
    (Sub, {"where": "models"}),
    (Sub, {"Else": "models"}),
    (Sub, {"other": [{"other": [{"where": "models"}]}]}),
    (list[Sub | int], [{"where": "models"}]),
    (Data, {"where": "models"}),
    (Typed, {"where": "models"}),
    (Named, ["models", 1]),
    (IPvAnyAddress, "10.0.0.1"),
    (IPvAnyAddress, 167772161),
    (IPvAnyNetwork, "10.0.0.0/8"),
    (ipaddress.IPv4Address, "10.0.0.1"),
    (list[ipaddress.IPv6Address], ["::1"]),
    (AnyUrl | None, "about"),
    (dict[str, HttpUrl], {"a": "host"}),
    (PostgresDsn, "db"),
    (ImportString[Any], "os.system"),
    (Callable[[int], int], "os"),
    (Json[Any], '"models"'),
]


def declare(kind: Any, value: Any) -> dict[Any, Any]:
    """Register a class with one field of a type and a plain name, and declare it with a value."""
    made = create_model("made", __base__=Base, thing=(kind | None if isinstance(kind, type) else kind, None))
    embedreg.register("guarded-thing")(made)
    return stored({**LENGTHS, "name": "guarded-thing", "model": {"thing": value}})


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    """Registering one name again and again warns."""


@pytest.mark.filterwarnings("ignore:'guarded-thing' was")
@pytest.mark.parametrize(("kind", "value"), KINDS, ids=str)
def test_nested_types_are_checked_at_any_depth(kind: Any, value: Any) -> None:
    """A relative path, a host without a scheme, an address, code: in any container, model, union or alias."""
    problem = embedreg.functions_in(declare(kind, value)).problems.get("vector")
    assert isinstance(problem, UntrustedError)
    assert "embedreg.trust(" in str(problem)


@pytest.mark.filterwarnings("ignore:'guarded-thing' was")
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Sub, {"n": 2}),
        (Sub, {"n": 2, "where": "usual"}),
        (Data | None, {"where": None, "n": 3}),
        (Typed, {"n": 1}),
        (dict[str, int], {"models": 1}),
        (list[str] | None, ["models"]),
        (bool | pathlib.Path, True),
        (tuple[int, str], [1, "models"]),
    ],
    ids=str,
)
def test_unguarded_types_pass(kind: Any, value: Any) -> None:
    """The other fields of a model with a path, its own defaults, keys that only look like something."""
    problem = embedreg.functions_in(declare(kind, value)).problems.get("vector")
    assert not isinstance(problem, UntrustedError)


@pytest.mark.filterwarnings("ignore:'guarded-thing' was")
def test_a_granted_value_passes(tmp_path: pathlib.Path) -> None:
    """The one that the refusal names."""
    told = declare(list[Sub], [{"where": str(tmp_path)}])
    with embedreg.trust(paths=[tmp_path]):
        assert embedreg.functions_in(told)["vector"].function.thing[0].where == tmp_path
    assert "vector" in embedreg.functions_in(told).problems


ADDRESSES = """
base_url baseurl baseURL BaseUrl base-url endpointurl apiBase apibase api_base hostname servername proxyurl
azureendpoint serverAddress ip ipaddr sockaddr url2 baseUrlV2 hosts proxies gateway dns callbackUri nameserver
"""
PATHS = """
filepath filePath file_path modelpath cachedir cacheDir cache-dir outputdir workdir cwd vocabfile unixsocket uds folder
files directories modelfolder filename weightsFile
"""
PLAIN = """
profile curl ghost xpath observer encode decode codec pattern code_column name model prompt text dim unicode fileno
filter direction directed pathology urlish server_side ipython zip tip chip transcript description hosted
"""


def test_names_are_checked_in_every_spelling() -> None:
    """Snake and camel case, hyphens, run together, numbered; words that merely contain one are left alone."""
    assert {guard_by_name(name) for name in ADDRESSES.split()} == {"address"}
    assert {guard_by_name(name) for name in PATHS.split()} == {"path"}
    assert {
        guard_by_name(n) for n in ["httpheaders", "extraHeaders", "shellcmd", "trustRemoteCode", "trustremotecode"]
    } == {"other"}
    assert {name: guard_by_name(name) for name in PLAIN.split() if guard_by_name(name)} == {}


@pytest.mark.parametrize("value", ["models", ["models"], {"a": [{"b": "models"}]}])
def test_a_path_made_by_a_validator_is_refused(value: Any, tmp_path: pathlib.Path) -> None:
    """By the value that the instance has; the one that is granted passes."""

    def paths(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: paths(item) for key, item in each.items()}
        return [paths(item) for item in each] if isinstance(each, list) else pathlib.Path(each)

    @embedreg.register("makes-paths")
    class MakesPaths(Base):
        thing: Annotated[Any, BeforeValidator(paths)] = "here"

    told = {**LENGTHS, "name": "makes-paths", "model": {"thing": value}}
    assert isinstance(embedreg.functions_in(stored(told)).problems["vector"], UntrustedError)
    told["model"] = {"thing": [str(tmp_path / "x")]}
    with embedreg.trust(paths=[tmp_path]):
        assert embedreg.functions_in(stored(told))["vector"].function.thing == [tmp_path / "x"]  # type: ignore[attr-defined]
    told["model"] = {"thing": "here"}
    assert "vector" in embedreg.functions_in(stored(told))


def test_recorded_traits_hold_no_secret() -> None:
    """A class that would store its key beside its vectors stores stars."""
    embedreg.get_registry().set_var("traits_key", "sk-0123456789")

    @embedreg.register("tells-traits")
    class Tells(Base):
        api_key: str = "$var:traits_key"

        def vector_traits(self) -> dict[str, Any]:
            return {"prompts": {"header": self.api_key}}

    stored_ = embedreg.get_registry().get_table_metadata([Tells.create().bind("a", "b")])
    assert b"***" in next(iter(stored_.values()))  # type: ignore[union-attr]
    assert b"0123456789" not in next(iter(stored_.values()))  # type: ignore[union-attr]


LEAVES = st.sampled_from(
    [
        *[
            (kind, "models", True)
            for kind in (pathlib.Path, pathlib.PurePath, FilePath, DirectoryPath, Folder, os.PathLike[str])
        ],
        (IPvAnyAddress, "10.0.0.1", True),
        (ipaddress.IPv4Network, "10.0.0.0/8", True),
        (HttpUrl, "host", True),
        (ImportString[Any], "os.system", True),
        (str, "/etc/passwd", True),
        (str, "http://10.0.0.1/", True),
        (Any, "../models", True),
        (int, 3, False),
        (str, "models", False),
        (bool, True, False),
    ]
)
WRAPS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "list": lambda kind, value: (list[kind], [value]),  # type: ignore[valid-type]
    "second": lambda kind, value: (list[kind | None], [None, value]),  # type: ignore[valid-type]
    "dict": lambda kind, value: (dict[str, kind], {"a": value}),  # type: ignore[valid-type]
    "mapping": lambda kind, value: (Mapping[str, kind], {"a": value}),  # type: ignore[valid-type]
    "tuple": lambda kind, value: (tuple[int, kind], [1, value]),  # type: ignore[valid-type]
    "sequence": lambda kind, value: (Sequence[kind], [value]),  # type: ignore[valid-type]
    "none": lambda kind, value: (kind | None, value),
    "union": lambda kind, value: (Union[int, kind], value),  # noqa: UP007
    "annotated": lambda kind, value: (Annotated[kind, Field(description="a thing")], value),
    "model": lambda kind, value: (create_model("inner", n=(int, 1), part=(kind, ...)), {"part": value}),
    "aliased": lambda kind, value: (create_model("inner", part=(kind, Field(alias="Part"))), {"Part": value}),
    "dataclass": lambda kind, value: (dataclasses.make_dataclass("inner", [("part", kind)]), {"part": value}),
    "typed dict": lambda kind, value: (TypedDict("inner", {"part": kind}), {"part": value}),  # type: ignore[operator]
}


@pytest.mark.filterwarnings("ignore:'guarded-thing' was")
@given(leaf=LEAVES, wraps=st.lists(st.sampled_from(sorted(WRAPS)), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_guarded_type_is_found_in_any_type(leaf: tuple[Any, Any, bool], wraps: list[str]) -> None:
    """Whatever containers, models and unions are around it: a stored path, host or code is refused; else nothing."""
    kind, value, guarded = leaf
    for each in wraps:
        kind, value = WRAPS[each](kind, value)
    told = declare(kind, value)
    with nothing_touched():
        problem = embedreg.functions_in(told).problems.get("vector")
    assert isinstance(problem, UntrustedError) is guarded, problem


SPELL: list[Callable[[list[str]], str]] = [
    "_".join,
    "-".join,
    "".join,
    lambda words: words[0] + "".join(map(str.title, words[1:])),
    lambda words: "".join(map(str.title, words)),
    lambda words: "_".join(words).upper(),
    lambda words: "_".join(words) + "_2",
    lambda words: "_" + "_".join(words),
]


@given(
    before=st.sampled_from([[], ["my"], ["azure"], ["model"], ["remote", "model"]]),
    last=st.sampled_from(
        [
            *((words.split(), "address") for words in ("base url", "endpoint", "api base", "host", "proxy url")),
            *((words.split(), "path") for words in ("cache dir", "file path", "vocab file", "folder")),
            *((words.split(), guard) for words, guard in (("headers", "other"), ("prompt", None), ("dim", None))),
        ]
    ),
    spell=st.sampled_from(SPELL),
)
def test_any_spelling_of_a_guarded_name_is_guarded(
    before: list[str], last: tuple[list[str], str | None], spell: Callable[[list[str]], str]
) -> None:
    """Words before it, in snake, camel, upper and hyphened case, run together and numbered."""
    words, guard = last
    assert guard_by_name(spell([*before, *words])) == guard
