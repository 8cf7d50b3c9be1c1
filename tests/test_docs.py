"""The README and docs/: every code block is run, every link leads somewhere.

The blocks of one page run in order, in one empty folder and one new process; its Python blocks share a namespace. On a
page that starts `embedreg serve` the database runs beside them (`docs_databend`): the server stays up, a TOML block is
the database's configuration, SQL is run, and a text block behind it is what the last statement answers.
A block that cannot run here carries the reason in a comment above it, `<!-- not run: reason -->`, and is reported as
skipped. Lines that would install or call make again are checked instead: the extra, or the target, exists.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if page.exists()]
LANGUAGES = {"python": "python", "py": "python", "bash": "shell", "sh": "shell", "shell": "shell", "console": "console"}
OF_A_DATABASE = {"sql": "sql", "toml": "toml", "text": "answer"}  # run on a page that starts a server for a database
SERVES = re.compile(r"(?m)^embedreg serve ")

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+|~~~+) *(?P<language>[\w.+-]*)")
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>.+?)\s*-->")
LINK = re.compile(r"(?m)\[[^\]]*\]\(<?(?P<target>[^)\s>]+)[^)]*\)|^\[[^\]]+\]:\s*(?P<definition>\S+)")
FENCED = re.compile(r"(?ms)^ *(```+|~~~+).*?^ *\1 *$")
CHECKED_ONLY = re.compile(r"\s*(make|pip|pipx|uv|python3? -m pip)\s")

# Runs one page. In __main__'s own namespace, so that classes can be pickled; padded with lines, so that a traceback
# shows the page's own.
DRIVER = """
import json, subprocess, sys
page, blocks = sys.argv[1], json.loads(sys.argv[2])
database = None
if any(kind == "serve" for _, kind, _ in blocks):
    sys.path.append(sys.argv[3])
    from tests.docs_databend import Database
    database = Database()
for line, kind, code in blocks:
    print(f"-- {page}:{line}", file=sys.stderr, flush=True)
    if kind == "python":
        exec(compile("\\n" * line + code, page, "exec"), globals())
        sys.stdout.flush()
    elif kind in ("sql", "toml", "answer", "serve"):
        getattr(database, kind)(code)
    elif (status := subprocess.run(["bash", "-euo", "pipefail", "-c", code], stdin=subprocess.DEVNULL).returncode):
        sys.exit(f"the shell block at {page}:{line} ended with exit code {status}")
if database is not None:
    database.close()
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it starts, what kind its fence says, its text, and why it is not run, if it is not."""

    page: Path
    line: int
    fence: str
    code: str
    not_run: str | None

    @property
    def language(self) -> str:
        """What runs it, on every page; "" for nothing."""
        return LANGUAGES.get(self.fence, "")

    @property
    def where(self) -> str:
        """Page and line, as an editor takes them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """The lines of a shell block; of a console block, those behind a prompt."""
        lines = self.code.splitlines()
        return [line[2:] for line in lines if line.startswith("$ ")] if self.language == "console" else lines

    def checked(self) -> list[str]:
        """The commands that are checked instead of run."""
        return [] if self.language == "python" else [line for line in self.commands() if CHECKED_ONLY.match(line)]

    def runnable(self) -> str:
        """The code to run; a line that is only checked becomes an empty one."""
        if self.language == "python":
            return self.code
        return "\n".join("" if CHECKED_ONLY.match(line) else line for line in self.commands())


def blocks(page: Path) -> Iterator[Block]:
    """Find the fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start, fence, above = 0, None, ""
    for number, line in enumerate(lines, 1):
        if fence is None:
            fence = FENCE.match(line)
            start = number
            if fence is None and line.strip():
                above = line
        elif line.strip() == fence["ticks"]:
            indent = len(fence["indent"])
            code = "\n".join(text[indent:] for text in lines[start : number - 1]) + "\n"
            note = NOT_RUN.search(above)
            yield Block(page, start, fence["language"], code, note and note["reason"])
            fence, above = None, ""
    assert fence is None, f"{page.name}:{start}: a block that never ends"


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [block for block in BLOCKS if block.language and block.not_run is None]
MARKED = [block for block in BLOCKS if block.not_run is not None]
RAN: set[tuple[tuple[str, str], ...]] = set()  # the code of pages without its comments
CHECKED = [(block, command) for block in RUN for command in block.checked()]


def steps(page: Path) -> list[tuple[int, str, str]]:
    """What the driver does for a page: line, kind and code of each block."""
    found = [block for block in blocks(page) if block.not_run is None]
    with_database = any(SERVES.search(block.code) for block in found if block.language == "shell")
    made: list[tuple[int, str, str]] = []
    for before, block in zip([None, *found], found, strict=False):
        kind = "python" if block.language == "python" else "shell" if block.language else ""
        if with_database:
            if kind == "shell" and SERVES.search(block.code):
                kind = "serve"
            elif block.fence != "text" or (before is not None and before.fence == "sql"):
                kind = kind or OF_A_DATABASE.get(block.fence, "")
        if kind:
            made.append((block.line, kind, block.runnable() if block.language else block.code))
    return made


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"(?m)^#+ +(.+?) *$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    """A stranger who pastes the page's blocks in their order meets no error."""
    plan = steps(page)
    if any(kind == "sql" for _, kind, _ in plan) and find_spec("databend") is None:
        pytest.skip("the database has no wheel for this machine")
    code = tuple((kind, uncommented(code)) for _, kind, code in plan)
    if code in RAN:
        return  # a translation, whose code has just run under its original's name
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(page), json.dumps(plan), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    if done.returncode:
        pytest.fail(f"{page.name} does not run\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}", pytrace=False)
    RAN.add(code)


@pytest.mark.parametrize(
    "block",
    # Nothing is asserted of them: they stand here to be counted and printed with their reasons.
    [pytest.param(block, marks=pytest.mark.skip(f"{block.where} is not run: {block.not_run}")) for block in MARKED],
    ids=[block.where for block in MARKED],
)
def test_blocks_that_are_not_run_say_why(block: Block) -> None:
    """A block that is not run shows in the suite's summary, with its reason."""


@pytest.mark.parametrize(("block", "command"), CHECKED, ids=[f"{b.where}-{c.strip()}" for b, c in CHECKED])
def test_lines_that_install_or_make_are_right(block: Block, command: str) -> None:
    """Each make target and each extra that the pages name is there."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        dry = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, cwd=ROOT)
        assert dry.returncode == 0, f"{block.where}: {dry.stderr}"
        return
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = {name.strip() for word in words for name in re.sub(r".*\[(.+)\].*|.*", r"\1", word).split(",")} - {""}
    assert named <= extras, f"{block.where}: pyproject.toml has no extra {', '.join(sorted(named - extras))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and a heading that it has."""
    for link in LINK.finditer(re.sub(r"`[^`\n]*`", "", prose(page))):
        target = link["target"] or link["definition"]
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # another site; nothing here may depend on a network
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name}: {path.name} has no heading for #{anchor}"


def test_the_readme_opens_for_a_stranger() -> None:
    """`pip install` comes first, ten lines of Python follow, then the repository's two commands."""
    found = [block for block in BLOCKS if block.page == ROOT / "README.md"]
    install, python, make = found[:3]
    assert install.code.startswith("pip install 'embedreg[")
    assert python.language == "python"
    assert python.not_run is None
    assert [shlex.split(command, comments=True) for command in make.checked()] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("**/*.zh.md")), ids=lambda page: page.name)
def test_a_translation_has_the_code_of_its_original(page: Path) -> None:
    """But for the words of its comments."""
    original = page.with_name(page.name.replace(".zh.md", ".md"))
    code, wanted = ([(block.fence, uncommented(block.code)) for block in blocks(each)] for each in (page, original))
    assert code == wanted


def uncommented(code: str) -> str:
    """Code without what stands behind a hash mark and a space."""
    return re.sub(r"(?m) *(^|(?<=\s))# .*$", "", code)


def test_the_pages_hold_code_that_runs() -> None:
    """The collection is not empty: most pages of docs/ have blocks, and most blocks are run."""
    assert (ROOT / "docs").is_dir()
    assert len(PAGES) > 1
    assert RUN
    assert len(MARKED) <= len(RUN), "more blocks are excused than run"


def test_the_glossary_fits_on_one_screen() -> None:
    """Forty lines at most: a reader looks a term up, and has no language to learn."""
    assert len((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()) <= 40
