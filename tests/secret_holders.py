"""Functions that can hold secrets, and what it means that a text is clean of one."""

import enum
import io
import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import (
    BaseModel,
    Field,
    SecretBytes,
    SecretStr,
)

from embedreg import TextEmbeddingFunction
from embedreg.security import references

SECRET = "sk-live/π+12345 abc"
HOME = Path(references.__file__).parent


class Base(TextEmbeddingFunction):
    """Embeds a text as its length."""

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any) -> Any:
        return [[float(len(text))] for text in texts]


class Inner(BaseModel):
    """A nested model with a secret."""

    key: SecretStr | None = None
    host: str = "here"


@dataclass(frozen=True)
class Pair:
    """A nested dataclass whose one field has a secret's name."""

    password: str
    host: str = "here"


class Pool(str, enum.Enum):  # noqa: UP042 (the older spelling is the one that equals its text in every way)
    """A choice."""

    mean = "mean"
    first = "first"


class Keyed(Base):
    """Every kind of field that can hold a secret, and some that cannot."""

    api_key: str | None = None
    wrapped: SecretStr | None = None
    listed: list[SecretStr] = Field(default=[])
    inner: Inner | None = None
    pair: Pair | None = None
    raw: SecretBytes | None = None
    headers: dict[str, Any] = Field(default={})
    url: str = ""
    dim: int = 3

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]


class Typed(Base):
    """Fields that are not text."""

    count: int = 1
    ratio: float = 1.0
    flag: bool = False
    maybe: int | None = None
    choice: Literal["a", "b"] = "a"
    pool: Pool = Pool.mean
    numbers: list[int] = Field(default=[])
    inner: Inner = Inner()


def forms(secret: str = SECRET) -> list[str]:
    """The secret, and what can be recognised of it."""
    return [secret, secret[:7], quote(secret, safe=""), json.dumps(secret)[1:-1]]


def assert_clean(text: object) -> None:
    """No form of the secret is in a text."""
    for form in forms():
        assert form not in str(text)


def everything_about(exc: BaseException) -> str:
    """All that can be got out of an error: its chain, notes, members, attributes, and the variables of our frames."""
    out, seen, todo = io.StringIO(), set(), [exc]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        todo += [other for other in (item.__cause__, item.__context__) if other is not None]
        todo += list(getattr(item, "exceptions", ()))
        print(str(item), repr(item), item.args, vars(item), file=out)
        traceback.print_exception(item, file=out)
        for frame, _ in traceback.walk_tb(item.__traceback__):
            if (
                "embedreg" in frame.f_code.co_filename.split("/")[-2]
            ):  # our own frames; a caller's variables are its own
                print({k: v for k, v in frame.f_locals.items() if k != "config"}, file=out)
    return out.getvalue()
