"""What a Databend server serves, and how much it takes on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

from embedreg.core import modality
from embedreg.core.base import EmbeddingFunction
from embedreg.core.kinds import kind_of, refusal
from embedreg.core.role import Role
from embedreg.errors import ConfigError

__all__ = ["DEFAULT_BIND", "Input", "Limits", "Returns", "Served", "inputs"]

DEFAULT_BIND = "127.0.0.1:8815"
MAX_CHUNK_ROWS = 65_536  # a block of Databend's
_MAY_BE_ZERO = {"queue", "cache_rows", "cache_bytes", "coalesce_window_s", "drain_s"}

Input: TypeAlias = str  # a modality that has a SQL type of those below, see `inputs`
Returns = Literal["array", "vector"]
PASSED = ("STRING", "BINARY")  # the SQL types of inputs that the server reads


def inputs() -> dict[str, str]:
    """Return what SQL can pass to a function, by the name of the modality, with its SQL type."""
    return {name: kind for name, kind in modality.sql_types("databend").items() if kind in PASSED}


@dataclass(frozen=True)
class Served:
    """One SQL function.

    Attributes:
        name: its name in SQL.
        function: the embedding function behind it.
        role: whether it embeds rows or queries; for some functions they differ, see `queries_differ`.
        input: what SQL passes: "text" is STRING, "image" is BINARY.
        returns: "array" is ARRAY(FLOAT); "vector" is VECTOR(n), for Databend newer than 1.2.453.
    Raises:
        ConfigError: a value of the wrong kind, or an input that the function cannot embed.
    """

    name: str
    function: EmbeddingFunction
    role: Role = "source"
    input: Input = "text"
    returns: Returns = "array"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise ConfigError(f"invalid name of a SQL function: {self.name!r}.", "serve({'ai_embed_384': function})")
        if not isinstance(self.function, EmbeddingFunction):
            raise ConfigError(
                f"{self.name}: expected an embedding function, got a {type(self.function).__name__}.",
                "embedreg.get('sentence-transformers').create(name='all-MiniLM-L6-v2')",
            )
        choices = {"role": get_args(Role), "input": tuple(inputs()), "returns": get_args(Returns)}
        for name, kinds in choices.items():
            if getattr(self, name) not in kinds:
                known = " or ".join(repr(kind) for kind in kinds)
                raise ConfigError(
                    f"{self.name}: invalid {name}={getattr(self, name)!r}; expected {known}.", f"{name}={known}"
                )
        self._refuse_other_input()

    def _refuse_other_input(self) -> None:
        """Refuse what the function does not embed, and vectors that are not one a row; a query may be a text."""
        if "databend" not in kind_of(self.function).sql:
            raise refusal(self.function, "Databend", "its vector type and distances are of one vector a row")
        passed, embedded = modality.MODALITIES[self.input], modality.modalities(self.function)
        in_words = self.role == "query" and passed is modality.TEXT
        if in_words or passed in embedded or modality.ANY in embedded:
            return
        if not any(each.name in inputs() for each in embedded):
            raise modality.refusal(self.function, embedded[0], "Databend", inputs())
        names = [each.name for each in embedded]
        raise ConfigError(
            f"{self.name}: {type(self.function).__name__} embeds {'+'.join(names)}, not {self.input}.",
            f"Served({self.name!r}, function, input={next(name for name in names if name in inputs())!r})",
        )


@dataclass(frozen=True)
class Limits:
    """The limits of one server.

    Attributes:
        concurrency: runs of one function at a time; None for its class's `Traits.concurrency`.
        queue: calls that may be open beyond those being run; one more is refused.
        call_deadline_s: how long a call may last, in seconds.
        chunk_rows: the most rows that are computed and sent at a time, and of wide vectors 8 MiB. A cancelled query
            stops after a chunk, sooner where the function runs on embedreg's runtime.
        cache_rows: the most vectors that are kept for each function; 0 for none.
        cache_bytes: the most memory for the vectors of all functions, in bytes.
        coalesce_window_s: how long a run may wait for more calls, in seconds; only where others were there just before,
            and where a run takes longer than this.
        coalesce_rows: the most inputs of a shared run.
        coalesce_tokens: the most tokens of a shared run, counted as four bytes of text each.
        max_text_bytes: a longer input is a bad row.
        max_message_bytes: the largest message that is read; Databend sends a block of rows as one.
        max_expanded_bytes: the maximum size of a compressed, dictionary or view column once it is decoded, in bytes.
        max_rows: the most rows of a message.
        memory_bytes: memory for the batches of all calls together; what does not fit waits.
        stall_s: how long a call may continue without its client sending or taking anything, in seconds. Where others
            need its place, half a second before it has named a function, then two.
        calls_per_client: calls that one address may have open.
        drain_s: how long a shutdown waits for the calls in flight, in seconds.
    Raises:
        ConfigError: a number out of range.
    """

    concurrency: int | None = None
    queue: int = 128
    call_deadline_s: float = 1800.0
    chunk_rows: int = 8192
    cache_rows: int = 100_000
    cache_bytes: int = 2**27
    coalesce_window_s: float = 0.003
    coalesce_rows: int = 256
    coalesce_tokens: int = 8192
    max_text_bytes: int = 2**20
    max_message_bytes: int = 2**28
    max_expanded_bytes: int = 2**25
    max_rows: int = 2**17
    memory_bytes: int = 3 * 2**26
    stall_s: float = 60.0
    calls_per_client: int = 256
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            whole = not item.name.endswith("_s")
            right = isinstance(value, int) or (not whole and isinstance(value, float))
            if isinstance(value, bool) or not right or not (value > 0 or (value == 0 and item.name in _MAY_BE_ZERO)):
                least = "0 or more" if item.name in _MAY_BE_ZERO else "more than 0"
                kind = "a whole number" if whole else "a number of seconds"
                raise ConfigError(f"{item.name}={value!r} is not {kind}, {least}.", f"{item.name}={item.default!r}")
        if self.chunk_rows > MAX_CHUNK_ROWS:
            raise ConfigError(f"chunk_rows={self.chunk_rows} is over {MAX_CHUNK_ROWS}.", "chunk_rows=8192")
