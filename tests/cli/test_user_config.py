"""Settings files: what every call would repeat, written down once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embedreg.cli import user_config
from embedreg.errors import ConfigError, StorageError

COUNTING = """
import embedreg

@embedreg.register("counting")
class Counting(embedreg.TextEmbeddingFunction):
    def ndims(self):
        return 1

    def generate_embeddings(self, texts):
        return [[float(len(text))] for text in texts]
"""


def read(path: Path, text: str) -> user_config.Granted:
    """Write a file and read it."""
    path.write_text(text, encoding="utf-8")
    granted = user_config.Granted()
    user_config.read(path, granted)
    return granted


def test_a_file_says_what_the_options_say(tmp_path: Path) -> None:
    """Imports, keys and grants are read; relative paths are taken from the file's folder."""
    found = read(
        tmp_path / "s.toml",
        'import = ["own.py", "package.module"]\n[env]\nkey = "MY_KEY"\n[trust]\npaths = ["models", "/m"]\n'
        'hosts = ["localhost:1"]\nvariables = ["key"]\nremote_code = ["org/m"]\nfields = ["f.headers"]\n'
        '[allow]\ndirs = ["photos"]\nhosts = ["h"]\n'
        'private_hosts = ["p"]\n',
    )
    assert found.imports == [str(tmp_path / "own.py"), "package.module"]
    assert found.env == {"key": "MY_KEY"}
    assert found.trust == {
        "paths": [str(tmp_path / "models"), "/m"],
        "hosts": ["localhost:1"],
        "variables": ["key"],
        "remote_code": ["org/m"],
        "fields": ["f.headers"],
    }
    assert found.allow == {"dirs": [str(tmp_path / "photos")], "hosts": ["h"], "private_hosts": ["p"]}


@pytest.mark.parametrize(
    "text",
    [
        *('[env]\nkey = "sk-abcdefghijklmnop"', "[env]\nkey = 3", '[env]\nkey = ""', '[env]\nkey = "A B"'),
        *("env = 3", "[trust]\nhosts = 'x'", "[trust]\nhosts = [3]", "[trust]\nhost = ['x']", "trust_hosts = ['x']"),
        *("import = 'x'", "import = ['']", "not toml", "a = " + "[" * 3000, "[allow]\ndirs = [['x']]"),
    ],
)
def test_what_is_not_valid_is_named_and_no_value_is_shown(tmp_path: Path, text: str) -> None:
    """An unknown setting, a wrong kind, or a key that was written out is an error that names the file."""
    with pytest.raises(ConfigError, match=r"s\.toml") as caught:
        read(tmp_path / "s.toml", text)
    assert "sk-" not in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    """Editors of some systems put one at the start."""
    assert read(tmp_path / "s.toml", "\ufeff[env]\nkey = 'K'\n").env == {"key": "K"}


def test_only_regular_files_that_others_cannot_change_are_read(tmp_path: Path) -> None:
    """A folder is refused at once, and a file that every user may write to grants nothing."""
    with pytest.raises(StorageError):
        user_config.read(tmp_path, user_config.Granted())
    path = tmp_path / "s.toml"
    path.write_text("", encoding="utf-8")
    path.chmod(0o666)
    with pytest.raises(StorageError, match="every user"):
        user_config.read(path, user_config.Granted())


def test_every_command_reads_the_users_own_file(cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`EMBEDREG_CONFIG` names it; a file of that name in the working folder is not looked at."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "own.py").write_text(COUNTING, encoding="utf-8")
    (tmp_path / "home" / "config.toml").write_text('import = ["own.py"]\n', encoding="utf-8")
    (tmp_path / "config.toml").write_text('import = ["not_there.py"]\n', encoding="utf-8")
    monkeypatch.setenv(user_config.VARIABLE, str(tmp_path / "home" / "config.toml"))
    (tmp_path / "n.jsonl").write_text('{"text": "abc"}\n', encoding="utf-8")
    cli("embed", "n.jsonl", "n.parquet", "-f", "counting")
    assert "counting" in cli("functions").out
    monkeypatch.setenv(user_config.VARIABLE, "")
    assert user_config.own_file() is None


def test_the_file_of_the_settings_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is named, the folder for settings is looked into."""
    monkeypatch.delenv(user_config.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert user_config.own_file() is None
    (tmp_path / "settings" / "embedreg").mkdir(parents=True)
    (tmp_path / "settings" / "embedreg" / "config.toml").touch()
    found = user_config.own_file()
    if os.name == "posix" and found is not None:  # where a system has another folder for settings, that one counts
        assert found == tmp_path / "settings" / "embedreg" / "config.toml"


def test_options_come_after_the_file(cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--env` on the command line wins over the file's, and trust of both counts."""
    (tmp_path / "s.toml").write_text('[env]\nkey = "FIRST"\n[trust]\nhosts = ["a.example"]\n', encoding="utf-8")
    monkeypatch.setenv("SECOND", "value")
    cli("functions", "--config", "s.toml", "--env", "key=SECOND", "--trust-host", "b.example")
    error = cli("functions", "--config", "nothing.toml", expect=1).err
    assert "nothing.toml cannot be read" in error
