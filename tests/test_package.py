"""The package itself: the wheel, an environment that holds nothing else, the public names, the cost of an import.

No index is asked. The empty environment is a new venv into which pip installs the wheel, and which sees, through
links, exactly the distributions that the wheel requires (and what those require): an import that pyproject.toml
forgot to declare fails here, although this environment has it. What the index would deliver to others is not proved.
"""

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import embedreg

ROOT = Path(__file__).resolve().parent.parent
HEAVY = [
    "PIL",
    "lancedb",
    "numpy",
    "openai",
    "pandas",
    "polars",
    "pyarrow",
    "rich",
    "sentence_transformers",
    "torch",
    "transformers",
    "typer",
]


def required(distribution: str, found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """Collect what a distribution requires, without extras, and what that requires in turn, by canonical name."""
    for text in metadata.distribution(distribution).requires or []:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[name] = metadata.distribution(name)
            required(name, found)
            for extra in requirement.extras:
                raise AssertionError(f"{distribution} requires {name}[{extra}]: teach this test about extras")
    return found


def build(target: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel of a source tree and return the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the unpacked source archive, which is so shown to be whole."""
    archive = build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(archive, unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def bare(wheel: Path, pip_install: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and its core requirements, and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip_install(wheel, pip=(sys.executable, "-m", "pip", "--python", python))
    (site,) = home.glob("lib/python*/site-packages")
    for distribution in required("embedreg", {}).values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return home / "bin"


def run(command: list[object], cwd: Path) -> str:
    """Run a command in an empty folder and return its stdout."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_package_its_licence_and_its_type_marker(wheel: Path) -> None:
    """Every module of the package is in the wheel, with py.typed, the licence and the entry point, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        fields = archive.read(f"{info}/METADATA").decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "embedreg").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "embedreg/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"embedreg", info}
    assert licence == (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "embedreg = embedreg.cli:main" in entry_points
    assert f"\nVersion: {embedreg.__version__}\n" in fields
    assert "\nLicense-Expression: Apache-2.0\n" in fields


def test_the_version_has_one_home(wheel: Path) -> None:
    """The number is written in _version.py and nowhere else in the package; the wheel is named after it."""
    assert wheel.name == f"embedreg-{embedreg.__version__}-py3-none-any.whl"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    homes = [path.name for path in (ROOT / "embedreg").rglob("*.py") if f'"{embedreg.__version__}"' in path.read_text()]
    assert homes == ["_version.py"]
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_it_installs_into_an_empty_environment_and_imports(bare: Path, tmp_path: Path) -> None:
    """With the declared requirements alone, the package imports from there, types included, and knows its version."""
    code = (
        "import embedreg, importlib.metadata as m, importlib.resources as r; print(embedreg.__file__);"
        "print(embedreg.__version__ == m.version('embedreg'), r.files('embedreg').joinpath('py.typed').is_file())"
    )
    file, facts = run([bare / "python", "-W", "error", "-c", code], tmp_path).splitlines()
    assert Path(file).is_relative_to(bare.parent)
    assert facts == "True True"


def test_the_core_works_with_nothing_but_the_core(bare: Path, tmp_path: Path) -> None:
    """No extra is needed to embed an Arrow table, and the error about a missing extra explains how to install it."""
    code = (
        "import embedreg, embedreg.errors, pyarrow as pa\n"
        "config = embedreg.get('hashing').create().bind('text', 'vector')\n"
        "table = embedreg.embed_table(pa.table({'text': ['one', None]}), config)\n"
        "print(table['vector'].null_count, len(table['vector'][0]) == config.function.ndims())\n"
        "try:\n"
        "    embedreg.get('sentence-transformers').create(name='all-MiniLM-L6-v2').compute_query_embeddings('x')\n"
        "except embedreg.errors.MissingExtraError as error:\n"
        "    print(error.hint)\n"
    )
    facts, hint = run([bare / "python", "-W", "error", "-c", code], tmp_path).splitlines()
    assert facts == "1 True"
    assert "pip install 'embedreg[sentence-transformers]'" in hint


@pytest.mark.parametrize("command", [["embedreg"], ["python", "-m", "embedreg"]], ids=" ".join)
def test_the_command_line_starts_there(bare: Path, tmp_path: Path, command: list[str]) -> None:
    """The installed command and `python -m embedreg` both answer to --help."""
    assert "doctor" in run([bare / command[0], *command[1:], "--help"], tmp_path)


def test_importing_it_loads_nothing_heavy(run_python: Callable[..., str]) -> None:
    """Where everything is installed, `import embedreg` still loads none of the heavy libraries."""
    code = "import sys, embedreg; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    assert run_python(code, *HEAVY, flags=("-W", "error")).split() == []


def test_the_public_names_are_there() -> None:
    """`__all__` names nothing twice, and each name in it is found; that it is sorted is ruff's RUF022 to see."""
    assert len(set(embedreg.__all__)) == len(embedreg.__all__)
    for name in embedreg.__all__:
        assert getattr(embedreg, name) is not None, name
    assert set(embedreg.__all__) <= set(dir(embedreg))


def test_a_star_import_gives_the_public_names(run_python: Callable[..., str]) -> None:
    """`from embedreg import *` gives `__all__`, from names that are loaded on first use too."""
    code = "import embedreg; from embedreg import *; print(sorted(set(embedreg.__all__) - set(dir())))"
    assert run_python(code).strip() == "[]"


def test_every_extra_is_part_of_all() -> None:
    """`pip install 'embedreg[all]'` brings what each function's and each engine's extra brings."""
    requires = [Requirement(text) for text in metadata.requires("embedreg") or []]

    def brought(extra: str) -> set[str]:
        of_extra = [r for r in requires if r.marker is not None and r.marker.evaluate({"extra": extra})]
        inner = [brought(name) for r in of_extra if r.name == "embedreg" for name in r.extras]
        return {r.name for r in of_extra if r.name != "embedreg"}.union(*inner)

    each = set(metadata.metadata("embedreg").get_all("Provides-Extra") or []) - {"all", "demo", "dev", "litellm"}
    assert each
    for extra in sorted(each):
        assert brought(extra) <= brought("all"), extra


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_reads_requirements_that_pip_can_read(tmp_path: Path) -> None:
    """`make test-latest` drops upper bounds and nothing else: a marker that was cut in two once ended it."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "probe.mk").write_text("include Makefile\nprobe:\n\t@$(PYTHON) -c '$(NEWEST)'\n")
    line = ["make", "-s", "-f", "probe.mk", "probe", f"PYTHON={sys.executable}"]
    printed = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    newest = [Requirement(each) for each in printed.splitlines()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(each) for part in project["optional-dependencies"].values() for each in part]
    wanted = [each for each in wanted + list(map(Requirement, project["dependencies"])) if each.name != "embedreg"]
    assert {each.name for each in newest} == {each.name for each in wanted}
    assert {(each.name, str(each.marker)) for each in newest} == {(each.name, str(each.marker)) for each in wanted}
    assert {mark.operator for each in newest for mark in each.specifier} == {">=", "=="}
