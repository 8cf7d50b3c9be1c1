"""What users import, type and read is what the last commit before the new layout had, but for what is listed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import public_surface

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "fixtures" / "v0" / "surface.json"

ADDED = "The functions `cohere`, `gemini-text`, `ollama`, `voyageai`, `jina`, `bedrock-text` and `watsonx`"
ADDED_FUNCTIONS = (
    "azure-openai",
    "bedrock-text",
    "cohere",
    "gemini-text",
    "huggingface-inference",
    "jina",
    "litellm",
    "mistral",
    "ollama",
    "tei",
    "vertex",
    "voyageai",
    "watsonx",
)
WRITTEN_ON = "`sentence-transformers` and `open-clip` are written on them, and have their methods"
# The start of a path in the surface -> words of the entry in CHANGELOG.md that says so, and what the end of the change
# has to be as `make surface` prints it; "" takes whatever it is, for help that is worded anew.
WIDTHS = "the column's width where it has changed (`Traits.width_defaults`)"
TOWERS = '`backend="openvino"` of `open-clip`'
JAVASCRIPT = "(`Traits.javascript_defaults`)"

KINDS = "Kinds of vectors, by `Traits(vectors=...)`"
_TEMPLATES = "`fn.SourceField(template=...)`, `EmbeddingFunctionConfig.template`, `--template` of"
_CHUNKS = "`embedreg.chunk`, `embedreg.sync`, `embedreg chunk` and `embedreg.chunks`"
_LIGHT_CLIP = 'The light back end of `open-clip`, `backend="light"`'
_LIGHT = 'The light back end of `sentence-transformers`, `backend="light"`'
# The errors of the version that is compared with.
ERRORS = (
    "BadRowsError",
    "CallError",
    "ConfigError",
    "DriftError",
    "DuplicateFunctionError",
    "EmbedregError",
    "HardcodedSecretError",
    "InputError",
    "MetadataError",
    "MissingColumnError",
    "MissingExtraError",
    "MissingVariableError",
    "ModelNotFoundError",
    "RowError",
    "SchemaError",
    "StorageError",
    "UnknownFunctionError",
    "UntrustedError",
    "VectorError",
)
_COLUMN = ("abandon", "add", "audit", "compare", "detach", "fill", "finish", "identify", "migrate", "refresh")
_COLUMN += ("repoint", "rollback", "settle", "status", "switch")
_BUDGET = "`embedreg.budget`"
_BATCHES = "`embedreg embed --batch-api`"
_USAGE = "`Report.usage` and `JobReport.usage`"
_SMALL = "`dtype=` of `fn.bind`"
_BIND = "dtype: str | None = None, ranges: Any = None) -> EmbeddingFunctionConfig"
_RECORDINGS = "`max_seconds`, `max_channels`, `max_samples` and `audio_formats` of `ImagePolicy`"
_FIELDS = ("ipm", "max_concurrency", "rpm", "tpm")
ALLOWED: dict[str, tuple[str, str]] = {
    **{
        f"functions / {name} / members / {member}": (_TEMPLATES, "template: str | None = None, " + end)
        for name in ("hashing", "open-clip", "openai", "sentence-transformers")
        for member, end in (("SourceField", "**kwargs: Any) -> Any"), ("bind", _BIND))
    },
    **{
        f"modules / embedreg / {name} / members / {member}": (_TEMPLATES, "template: str | None = None, " + end)
        for name in ("EmbeddingFunction", "TextEmbeddingFunction")
        for member, end in (("SourceField", "**kwargs: Any) -> Any"), ("bind", _BIND))
    },
    "modules / embedreg / EmbeddingFunctionConfig / fields / template": (_TEMPLATES, "added"),
    "modules / embedreg / EmbeddingFunctionConfig / signature": (
        _TEMPLATES,
        "(*, vector_column, source_column, function, value_type = None, template = None, ranges = None) -> None",
    ),
    **{
        f"outputs / {name} / functions / 0 / template": (_TEMPLATES, "added")
        for name in ("inspect", "inspect, checked")
    },
    "results / functions_in, one / fields / template": (_TEMPLATES, "added"),
    "results / inspect / 0 / template": (_TEMPLATES, "added"),
    **{
        f"modules / embedreg / ImagePolicy / fields / {name}": (_RECORDINGS, "added")
        for name in ("audio_formats", "max_channels", "max_samples", "max_seconds")
    },
    "modules / embedreg / ImagePolicy / signature": (_RECORDINGS, ""),
    "modules / embedreg / budget": (_BUDGET, "added"),
    **{f"functions / openai / fields / {name}": (_BUDGET, "added") for name in _FIELDS},
    **{f"outputs / functions / openai / config / properties / {name}": (_BUDGET, "added") for name in _FIELDS},
    **{
        f"functions / openai / members / {name}": (_BUDGET, "added")
        for name in ("account", "budget", "counts_inputs", "estimate_usage")
    },
    "functions / openai / runtime": (_BUDGET, "+max_concurrency\n+rpm\n+tpm"),
    "modules / embedreg / Report / fields / usage": (_USAGE, "added"),
    "modules / embedreg / inspect / signature": (
        "`embedreg.inspect(data, backends=True)`",
        "backends: bool = False) -> list[dict[str, Any]]",
    ),
    "modules / embedreg / Report / signature": (_SMALL, "clipped: int = 0) -> None"),
    "modules / embedreg / Report / fields / clipped": (_SMALL, "added"),
    "modules / embedreg / EmbeddingFunctionConfig / fields / ranges": (_SMALL, "added"),
    "modules / embedreg / Vector / signature": (_SMALL, "-> type[VectorType]"),
    "modules / embedreg / calibrate": ("`embedreg.calibrate`", "added"),
    **{f"outputs / embed, a {kind} / clipped": (_SMALL, "added") for kind in ("file", "folder", "table")},
    **{
        f"{owner} / calibration_rows": (_SMALL, "added")
        for owner in (
            "outputs / inspect / functions / 0",
            "outputs / inspect, checked / functions / 0",
            "results / inspect / 0",
        )
    },
    **{f"results / {name} / fields / clipped": (_SMALL, "added") for name in ("embed", "embed_table's report")},
    "results / functions_in, one / fields / ranges": (_SMALL, "added"),
    "results / embed / fields / usage": (_USAGE, "added"),
    "results / embed_table's report / fields / usage": (_USAGE, "added"),
    **{f"outputs / embed, a {kind} / usage": (_USAGE, "added") for kind in ("file", "folder", "table")},
    "outputs / embed, an estimate / 0 / cost": ("--estimate --price-per-million", "added"),
    **{
        f"help / embedreg column{name}": ("`embedreg column`: the same from a shell", "added")
        for name in ("", *(f" {each}" for each in _COLUMN))
    },
    "modules / embedreg / embed / signature": (_BATCHES, "batch_api: bool = False) -> JobReport"),
    "functions / openai / members / batch_api": (_BATCHES, "added"),
    **{f"outputs / inspect{checked} / job": (_BATCHES, "added") for checked in ("", ", checked")},
    "modules / embedreg / embed_column / signature": (
        "`embed_column` has no parameter `probing` any more",
        "-> (function: EmbeddingFunction, values: Any, role: Role = 'source', *, "
        "zero_vectors: ZeroVectors | None = None, on_window: Callable[[int], None] | None = None, "
        "declared: Mapping[str, Any] | None = None) -> Embedded",
    ),
    "modules / embedreg.engines.databend / Server / signature": (
        "`engines.databend.Server`, which `serve` makes",
        "workers: Iterable[FunctionWorker], metrics: Metrics, health: Health | None) -> None",
    ),
    "modules / embedreg.engines.ray / run_job / signature": (
        "`engines.ray.run_job` calls its further arguments `options`",
        "-> (job: Job, **options: Any) -> JobReport",
    ),
    **{
        f"{owner} / {name}": (words, "added")
        for owner in ("functions", "outputs / doctor / functions", "outputs / functions")
        for words, names in (
            (
                "LanceDB's local text functions `huggingface`, `colbert`, `gte-text` and `instructor`",
                ("colbert", "gte-text", "huggingface", "instructor"),
            ),
            ("`siglip`, images and texts", ("siglip",)),
            ("`clap`: recordings and texts", ("clap",)),
            ("`sentence-transformers-multimodal`: images and texts", ("sentence-transformers-multimodal",)),
            (
                "The functions `jina-clip`, `voyageai-multimodal` and `cohere-multimodal`",
                ("cohere-multimodal", "jina-clip", "voyageai-multimodal"),
            ),
            ("`static`: model2vec's models", ("static",)),
            ("`late-interaction`: ColBERT models", ("colpali", "late-interaction", "splade")),
        )
        for name in names
    },
    **{
        f"functions / {name} / traits / javascript_defaults": (JAVASCRIPT, "added")
        for name in ("hashing", "open-clip", "openai", "sentence-transformers")
    },
    **{
        f"functions / {name} / traits / width_defaults": (
            WIDTHS,
            "added",
        )
        for name in ("hashing", "open-clip", "openai", "sentence-transformers")
    },
    "modules / embedreg / Traits / fields / width_defaults": (
        WIDTHS,
        "added",
    ),
    **{
        f"outputs / functions, one / {key}": ("`describe` has `group`, `lancedb` and `roles`", "added")
        for key in ("group", "lancedb", "roles")
    },
    "modules / embedreg / Traits / fields / javascript_defaults": (JAVASCRIPT, "added"),
    "functions / open-clip / fields / backend": (TOWERS, "added"),
    "functions / open-clip / runtime": (TOWERS, "@@ -0,0 +1 @@\n+backend"),
    "functions / open-clip / signature": (TOWERS, "num_threads = None, backend = 'auto') -> None"),
    "outputs / functions / open-clip / config / properties / backend": (TOWERS, "added"),
    "distribution / extras": ("(`embedreg[static]`)", ""),  # one for each new function
    "outputs / doctor / libraries": ("(`embedreg[static]`)", "added"),  # what the new functions need
    "outputs / doctor / prompts": ("lists those in the hub's cache under `prompts`", "added"),
    **{
        f"modules / {module} / {name} / members / with_shell_hint_of": ("`EmbedregError.with_shell_hint_of`", "removed")
        for module, names in (("embedreg", ("EmbedregError", "RowError")), ("embedreg.errors", ERRORS))
        for name in names
    },
    **{
        f"modules / embedreg.testing / {suite} / members / test_ndims_loads_no_weights": (
            "`embedreg.testing` starts one process",
            "inputs: list[Any]) -> None",
        )
        for suite in ("EmbeddingFunctionContract", "ImageFunctionContract")
    },
    "outputs / doctor / engines": ("`embedreg doctor` shows", "added"),
    "outputs / functions / sentence-transformers / config / properties / backend / enum": (_LIGHT, "\n+light"),
    "outputs / doctor / model / backend": ("`embedreg doctor` and", "added"),
    "outputs / inspect / functions / 0 / backend": ("`embedreg doctor` and", "added"),
    "outputs / inspect, checked / functions / 0 / backend": ("`embedreg doctor` and", "added"),
    "results / inspect / 0 / backend": ("`embedreg doctor` and", "added"),
    "functions / sentence-transformers / fields / backend": (_LIGHT, "'auto'"),
    "functions / open-clip / members / chosen_backend": (_LIGHT_CLIP, "added"),
    "functions / sentence-transformers / members / chosen_backend": ("`chosen_backend()`", "added"),
    "functions / sentence-transformers / traits / alternatives": (_LIGHT, "added"),
    "functions / hashing / traits / alternatives": (_LIGHT, "added"),
    **{
        f"{owner} / hashing-sparse": ("`hashing-sparse`: the words of a text as a sparse vector", "added")
        for owner in ("functions", "outputs / doctor / functions", "outputs / functions")
    },
    **{
        f"functions / {name} / traits / vectors": (KINDS, "added")
        for name in ("hashing", "open-clip", "openai", "sentence-transformers")
    },
    "modules / embedreg / Traits / fields / vectors": (KINDS, "added"),
    **{
        f"results / embed_column / {name}": ("`.vectors` of any kind and `.kind`", change)
        for name, change in (
            ("fields / kind", "added"),
            ("fields / matrix", "removed"),
            ("fields / vectors", "added"),
            ("members / matrix", "added"),
            ("members / ndims", "added"),
        )
    },
    **{
        f"{where} / vectors": ("`embedreg inspect` names the kind under `vectors`", "added")
        for where in (
            "outputs / inspect / functions / 0",
            "outputs / inspect, checked / functions / 0",
            "results / inspect / 0",
        )
    },
    "modules / embedreg.testing / VectorKindContract": ("`embedreg.testing.VectorKindContract`", "added"),
    "modules / embedreg / MultiVector": ("`embedreg.MultiVector(n)` and", "added"),
    "modules / embedreg / SparseVector": ("`embedreg.SparseVector(n)` are field types", "added"),
    "modules / embedreg / embed_query / signature": (KINDS, "declared: Mapping[str, Any] | None = None) -> Any"),
    "functions / open-clip / traits / alternatives": (_LIGHT, "added"),
    "functions / openai / traits / alternatives": (_LIGHT, "added"),
    "modules / embedreg / Traits / fields / alternatives": (_LIGHT, "added"),
    "modules / embedreg / Traits / signature": (
        _LIGHT,
        "alternatives: tuple[tuple[str, ...], ...] = (), vectors: str = 'dense') -> None",
    ),
    "help": (
        "`--trust-remote-code` and `--trust-field` on every command",
        "\n+  --trust-remote-code MODEL, --allow-dir DIR,",
    ),
    "help / embedreg ddl": ("The help of commands and options is reworded", "in a database; nothing is run."),
    "help / embedreg": ("`--trust-remote-code` and `--trust-field` on every command", "\n+  docs/trust.md"),
    "modules / embedreg / InputFiles": ("`embedreg.Modality` (with `embedreg.InputFiles`)", "added"),
    "modules / embedreg / Modality": ("`embedreg.add_modality` and `embedreg.Modality`", "added"),
    "modules / embedreg / add_modality": ("`embedreg.add_modality` and `embedreg.Modality`", "added"),
    "help / embedreg chunk": (_CHUNKS, "added"),
    "modules / embedreg / chunk": (_CHUNKS, "added"),
    "modules / embedreg / sync": (_CHUNKS, "added"),
    "modules / embedreg / Grant": ("`embedreg.Grant`, what stored metadata needs or is granted, as a value", "added"),
    "modules / embedreg / trust / signature": (
        "`embedreg.trust(grant)` grants it",
        "-> (grant: Grant | None = None, *, paths: Iterable[str | Path] = (), hosts: Iterable[str] = (), variables: "
        "Iterable[str] = (), remote_code: Iterable[str] = (), fields: Iterable[str] = ()) -> Trust",
    ),
    "modules / embedreg.errors / UntrustedError / signature": (
        "`UntrustedError.needed` and `Functions.needed` hold everything at once",
        "-> (message: str, hint: str | None = None, needed: Grant = Grant(paths=(), hosts=(), variables=(), "
        "remote_code=(), fields=())) -> None",
    ),
    "outputs / inspect / functions / 0 / needed": ("`embedreg inspect --json` list it under `needed`", "added"),
    "outputs / inspect, checked / functions / 0 / needed": (
        "`embedreg inspect --json` list it under `needed`",
        "added",
    ),
    "results / functions_in / members / every": ("`Functions.every()` returns the declarations", "added"),
    "results / functions_in / members / needed": (
        "`UntrustedError.needed` and `Functions.needed` hold everything at once",
        "added",
    ),
    "results / inspect / 0 / needed": ("`embedreg inspect --json` list it under `needed`", "added"),
    "functions / openai / members / request": (
        "both call `request(batch, role)`",
        "-> method (self, batch: list[str], role: Role = 'source') -> ndarray",
    ),
    "modules / embedreg / LocalFunction": ("`embedreg.LocalFunction` and `embedreg.LocalImageFunction`", "added"),
    "modules / embedreg / LocalImageFunction": ("`embedreg.LocalFunction` and `embedreg.LocalImageFunction`", "added"),
    "modules / embedreg / RemoteFunction": ("`embedreg.RemoteFunction`, for inputs of any kind", "added"),
    "functions / openai / bases": (
        "beside `embedreg.RemoteTextFunction`",
        "@@ -0,0 +1 @@\n+RemoteTextFunction\n@@ -1,0 +3 @@\n+RemoteFunction",
    ),
    "modules / embedreg / RemoteTextFunction": ("beside `embedreg.RemoteTextFunction`", "added"),
    "modules / embedreg / Tokens": ("`embedreg.Tokens`, what", "added"),
    "functions / sentence-transformers / bases": (WRITTEN_ON, "@@ -0,0 +1 @@\n+LocalFunction"),
    "functions / sentence-transformers / members / generate_embeddings": (
        WRITTEN_ON,
        "-> method (self: Any, texts: Any, *args: Any, **kwargs: Any) -> Any",
    ),
    "functions / open-clip / bases": (WRITTEN_ON, "@@ -0,0 +1 @@\n+LocalImageFunction"),
    **{
        f"{section} / {name}": (ADDED, "added")
        for section in ("functions", "outputs / doctor / functions")
        for name in ADDED_FUNCTIONS
    },
    "outputs / doctor / keys": ("`embedreg doctor` shows the keys of every function that are set", "added"),
    "outputs / functions": (ADDED, ""),  # one line of JSON for each function
    **{
        f"functions / openai / fields / {name}": ("`openai` has `query_prompt` and `document_prompt`", "added")
        for name in ("query_prompt", "document_prompt")
    },
    "functions / openai / signature": ("`openai` has `query_prompt` and `document_prompt`", ""),
    "functions / openai / members / at": ("`OpenAIEmbeddings.at(server)`", "added"),
    **{
        f"functions / {owner} / members / {name}": (WRITTEN_ON, "added")
        for owner, names in (
            ("sentence-transformers", ("forward", "load", "tokenize", "weights_key")),
            ("open-clip", ("draft_side", "forward", "load", "prepare", "weights_key")),
        )
        for name in names
    },
    **{
        f"modules / embedreg.testing / {suite} / members / {name}": ("`embedreg.testing` checks roles", "added")
        for suite in ("EmbeddingFunctionContract", "ImageFunctionContract")
        for name in (
            "queries",
            "test_a_column_of_queries_has_their_vectors",
            "test_a_query_does_not_depend_on_its_neighbours",
            "test_no_queries",
            "test_queries_in_a_batch_are_as_alone",
            "test_sources_in_a_batch_are_sources",
            "test_the_role_is_respected",
        )
    },
    **{
        f"{owner} / members / {name}": (
            "`compute_embeddings(inputs, role)` and `compute_embeddings_with_retry`",
            "added",
        )
        for owner in (
            *(f"functions / {name}" for name in ("hashing", "open-clip", "openai", "sentence-transformers")),
            "modules / embedreg / EmbeddingFunction",
            "modules / embedreg / TextEmbeddingFunction",
        )
        for name in ("compute_embeddings", "compute_embeddings_with_retry")
    },
}

# Sections whose wording depends on the library that words them: they are compared under the versions that wrote them.
WORDED_BY = {
    "functions": ("python", "pydantic"),
    "outputs / functions / 3 / config / properties / backend / enum": (
        'The light back end of `sentence-transformers`, `backend="light"`',
        "\n+light",
    ),
    "help": ("python", "typer"),
    "modules": ("python", "pydantic"),
    "results": ("python", "pydantic"),
}
SECTIONS = ["distribution", "errors", "functions", "help", "modules", "outputs", "results"]


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The surface that commit 0e9641d wrote."""
    found: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def current() -> dict[str, Any]:
    """Today's surface, from a process in which nothing of the tests is registered."""
    line = [sys.executable, "-m", "tests.public_surface"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def allowed_by(path: str, change: str) -> str | None:
    """Return what allows a path to differ so, the longest that fits."""
    fitting = [
        start
        for start, (_, end) in ALLOWED.items()
        if (path == start or path.startswith(f"{start} / ")) and change.endswith(end)
    ]
    return max(fitting, key=len, default=None)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_surface_is_as_it_was(stored: dict[str, Any], current: dict[str, Any], section: str) -> None:
    """Names, signatures, fields, errors, help and JSON outputs: each difference is an entry of the changelog."""
    assert stored.keys() == {*SECTIONS, "made_with"}
    made, now = stored["made_with"], public_surface.made_with()
    if other := [name for name in WORDED_BY.get(section, ()) if made[name] != now[name]]:
        pytest.skip(f"stored under {', '.join(f'{name} {made[name]}' for name in other)}: it may word this otherwise")
    found = public_surface.differences(stored[section], current[section], section)
    unexpected = [f"{path}: {change}" for path, change in found.items() if allowed_by(path, change) is None]
    assert not unexpected, "not in ALLOWED:\n" + "\n".join(unexpected)
    used = {allowed_by(path, change) for path, change in found.items()}
    stale = [start for start in ALLOWED if start.partition(" / ")[0] == section and start not in used]
    assert not stale, "allowed, and not so: take it out of ALLOWED"


def test_each_allowed_difference_is_in_the_changelog() -> None:
    """What users meet differently is written down for them, among what is not released yet."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = " ".join(text.partition("## [Unreleased]")[2].partition("\n## [")[0].split())
    assert [words for words, _ in ALLOWED.values() if not words.strip() or words not in unreleased] == []


def test_a_difference_is_found_wherever_it_is(stored: dict[str, Any]) -> None:
    """Something added, removed or changed, at any depth, is named by its path; the same surface has none."""
    changed = json.loads(json.dumps(stored))
    assert public_surface.differences(stored, changed) == {}
    changed["modules"]["embedreg"]["embed"]["signature"] = "()"
    changed["help"]["embedreg embed"].append("  --new")
    del changed["errors"]["DriftError"]
    changed["outputs"]["functions"][0]["more"] = "text"
    found = public_surface.differences(stored, changed)
    assert found.pop("help / embedreg embed").splitlines()[-1] == "+  --new"
    assert found == {
        "errors / DriftError": "removed",
        "modules / embedreg / embed / signature": f"{stored['modules']['embedreg']['embed']['signature']} -> ()",
        "outputs / functions / 0 / more": "added",
    }
