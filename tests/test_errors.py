"""The error tree: what callers may catch, what an error contains, and how optional libraries and typos are reported."""

import copy
import pickle
from pathlib import Path

import pytest

from embedreg import attempt_import_or_raise, errors
from embedreg.support.imports import did_you_mean

TREE = {
    "BadRowsError": ValueError,
    "CallError": RuntimeError,
    "ConfigError": ValueError,
    "DriftError": ValueError,
    "DuplicateFunctionError": ValueError,
    "HardcodedSecretError": errors.ConfigError,
    "InputError": TypeError,
    "MetadataError": ValueError,
    "MissingColumnError": KeyError,
    "MissingExtraError": ImportError,
    "MissingVariableError": errors.ConfigError,
    "ModelNotFoundError": FileNotFoundError,
    "RowError": ValueError,
    "SchemaError": ValueError,
    "StorageError": OSError,
    "UnknownFunctionError": KeyError,
    "UntrustedError": PermissionError,
    "VectorError": ValueError,
}


def test_the_tree_is_whole() -> None:
    """Every public error but the root is in the table of this file, and drawn in the module's docstring."""
    assert set(errors.__all__) == {*TREE, "EmbedregError"}
    assert all(name in (errors.__doc__ or "") for name in errors.__all__)


@pytest.mark.parametrize(("name", "builtin"), TREE.items())
def test_an_error_is_also_the_builtin_that_callers_expect(name: str, builtin: type[Exception]) -> None:
    """Each error is an EmbedregError and the builtin (or parent) that the design gives it."""
    with pytest.raises(builtin) as caught:
        raise getattr(errors, name)("what was wrong.", "what to do")
    assert isinstance(caught.value, errors.EmbedregError)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_reads_as_message_and_hint(name: str) -> None:
    """`str` gives the message and the hint on a second line, for KeyError's and OSError's children too."""
    cls = getattr(errors, name)
    assert str(cls("no such thing.", "try that")) == "no such thing.\nHint: try that"
    assert str(cls("no such thing.")) == "no such thing."


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_survives_pickle_and_copy(name: str) -> None:
    """A worker process can hand an error over with its message, hint and attributes."""
    exc = getattr(errors, name)("message", "hint")
    exc.rows = (3, 4)
    for twin in (pickle.loads(pickle.dumps(exc)), copy.copy(exc)):
        assert type(twin) is type(exc)
        assert (twin.message, twin.hint, twin.rows, str(twin)) == ("message", "hint", (3, 4), str(exc))


def test_a_missing_library_says_how_to_install_it() -> None:
    """The hint is a pip command: for the extra where there is one, else the package, else the module's root."""
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'embedreg\[lancedb\]'"):
        attempt_import_or_raise("no_such_module_here", extra="lancedb")
    with pytest.raises(errors.MissingExtraError, match="pip install some-package"):
        attempt_import_or_raise("no_such_module_here.part", "some-package")
    with pytest.raises(ImportError, match="pip install no_such_module_here"):
        attempt_import_or_raise("no_such_module_here")


def test_an_installed_library_without_that_module_is_not_called_missing() -> None:
    """`json` is there; that it has no such part is what the error says."""
    with pytest.raises(errors.MissingExtraError, match=r"'json' has no module 'json\.nothing'.*\n.*--upgrade json"):
        attempt_import_or_raise("json.nothing")


def test_a_namespace_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`google`, of which other libraries have brought a part, is not google-auth: that is what is missing."""
    (tmp_path / "namespace_here" / "other").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(errors.MissingExtraError, match=r"'google-auth' is not installed.*\n.*embedreg\[vertex\]"):
        attempt_import_or_raise("namespace_here.auth", "google-auth", extra="vertex")


def test_a_library_that_is_there_is_returned() -> None:
    """The module itself comes back, for a dotted name the inner one."""
    assert attempt_import_or_raise("json.decoder").__name__ == "json.decoder"


def test_a_library_that_lacks_one_of_its_own_needs_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken installation is not a missing extra: its own message is shown."""
    (tmp_path / "broken_library_here.py").write_text("import what_it_needs_itself\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs_itself") as caught:
        attempt_import_or_raise("broken_library_here")
    assert not isinstance(caught.value, errors.EmbedregError)


def test_a_suggestion_is_the_closest_word_whatever_its_case() -> None:
    """Typing slips, capitals and underscores find their word; nonsense finds none."""
    known = ["hashing", "openai", "sentence-transformers"]
    assert did_you_mean("OpenAI", known) == "did you mean 'openai'? "
    assert did_you_mean("sentence_transformer", known) == "did you mean 'sentence-transformers'? "
    assert did_you_mean("qqqq", known) == ""
    assert did_you_mean("openai", []) == ""
