"""The `voyageai` function: Voyage AI's embeddings of texts, and of images by its multimodal models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.instances import metadata_is_building
from embedreg.core.role import Role
from embedreg.runtime.remote.answers import in_order
from embedreg.runtime.remote.batch_api import BatchApi, FileBatches
from embedreg.runtime.remote.pictures import Picture, jpeg_of
from embedreg.runtime.remote.vendor import Model, Vendor
from embedreg.runtime.remote.vendor_images import MultimodalFunction

if TYPE_CHECKING:
    from typing import Self

__all__ = ["VoyageAIEmbeddings"]

_WIDTHS = (256, 512, 2048)
MODELS = {
    "voyage-4": Model(1024, _WIDTHS, 32_000, request_tokens=320_000),
    "voyage-4-lite": Model(1024, _WIDTHS, 32_000, request_tokens=1_000_000),
    "voyage-4-large": Model(1024, _WIDTHS, 32_000, request_tokens=120_000),
    "voyage-code-4": Model(1024, _WIDTHS, 32_000, request_tokens=120_000),
    "voyage-context-4": Model(1024, _WIDTHS, 120_000, request_tokens=32_000),
    "voyage-3.5": Model(1024, _WIDTHS, 32_000, request_tokens=320_000),
    "voyage-3.5-lite": Model(1024, _WIDTHS, 32_000, request_tokens=1_000_000),
    "voyage-3-large": Model(1024, _WIDTHS, 32_000, request_tokens=120_000),
    "voyage-3": Model(1024, max_tokens=32_000, request_tokens=120_000),
    "voyage-3-lite": Model(512, max_tokens=32_000, request_tokens=120_000),
    "voyage-code-3": Model(1024, _WIDTHS, 32_000, request_tokens=120_000),
    "voyage-context-3": Model(1024, _WIDTHS, 32_000, request_tokens=32_000),
    "voyage-multimodal-3.5": Model(1024, _WIDTHS, 32_000, request_tokens=120_000),
    "voyage-multimodal-3": Model(1024, max_tokens=32_000, request_tokens=120_000),
    "voyage-finance-2": Model(1024, max_tokens=32_000, request_tokens=120_000),
    "voyage-multilingual-2": Model(1024, max_tokens=32_000, request_tokens=120_000),
    "voyage-law-2": Model(1024, max_tokens=16_000, request_tokens=120_000),
    "voyage-code-2": Model(1536, max_tokens=16_000, request_tokens=120_000),
}
_SHORTENED_BY_STOCK = "voyage-multimodal-3.5"  # the one model for which LanceDB sends output_dimension
_HINT = "check the model's name and base_url"
_PATHS = {
    "text": "/embeddings",
    "multimodal": "/multimodalembeddings",
    "contextual": "/contextualizedembeddings",
}
_INPUTS = frozenset({"input", "inputs"})


class VoyageAIEmbeddings(MultimodalFunction):
    """Voyage AI's embedding models, for texts; a multimodal model takes images too, sent as JPEG as LanceDB does.

    Each text of a contextual model (voyage-context-3) is a document of its own: its vector does not depend on its
    neighbours. Queries and sources are sent as what they are (`input_type`).

    Attributes:
        name: the model.
        output_dimension: LanceDB's field for the width, which it uses for voyage-multimodal-3.5 alone: so it is read,
            and refused for another model in code.
        text_embedding_models, multimodal_embedding_models, contextual_embedding_models: more names of each kind, as in
            LanceDB.
        dim: request vectors of this width, of any model that has it. None: the model's own.
        base_url: another address, with its `/v1`. None: Voyage's, or MongoDB's for a key of theirs ("al-").
        api_key: a `$var:` reference. None: VOYAGE_API_KEY.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "voyageai"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",),
        extra="voyageai",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset(
            {
                "name",
                "output_dimension",
                "text_embedding_models",
                "multimodal_embedding_models",
                "contextual_embedding_models",
                "max_retries",
                "api_key",
            }
        ),
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Voyage AI",
        models=MODELS,
        url="https://api.voyageai.com/v1",
        key_names=("VOYAGE_API_KEY",),
        max_inputs=1000,
        docs="Voyage AI: Text Embeddings",
    )

    name: str
    output_dimension: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    text_embedding_models: list[str] = [  # noqa: RUF012 (a field, with LanceDB's default)
        "voyage-4",
        "voyage-4-lite",
        "voyage-4-large",
        "voyage-3.5",
        "voyage-3.5-lite",
        "voyage-3",
        "voyage-3-lite",
        "voyage-finance-2",
        "voyage-multilingual-2",
        "voyage-law-2",
        "voyage-code-2",
    ]
    multimodal_embedding_models: list[str] = ["voyage-multimodal-3", "voyage-multimodal-3.5"]  # noqa: RUF012
    contextual_embedding_models: list[str] = ["voyage-context-3"]  # noqa: RUF012
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    base_url: str | None = None
    api_key: str | None = None

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = self.__dict__
        self._refuse_address()
        self._refuse_width(fields["dim"])
        stray = fields["output_dimension"] is not None and fields["name"] != _SHORTENED_BY_STOCK
        if stray and not metadata_is_building():
            raise ValueError(
                f"LanceDB ignores output_dimension for {fields['name']}: use dim={fields['output_dimension']}"
            )
        return self

    def _requested_width(self) -> int | None:
        return self.dim or (self.output_dimension if self.name == _SHORTENED_BY_STOCK else None)

    def _kind(self) -> str:
        if self.name in self.multimodal_embedding_models or "multimodal" in self.name:
            return "multimodal"
        return "contextual" if self.name in self.contextual_embedding_models or "context" in self.name else "text"

    def _remarks(self) -> list[str]:
        remarks = []
        if self.output_dimension is not None and self.name != _SHORTENED_BY_STOCK:
            width = self._known_ndims()
            remarks.append(
                f"output_dimension={self.output_dimension} is ignored for {self.name!r}, as by LanceDB ({width} wide)"
            )
        if self._takes_images() and self.from_metadata and not self._declared:
            remarks.append("LanceDB sends the images of this model as the camera held them, embedreg upright")
        if self._kind() == "contextual" and self.from_metadata and not self._declared:
            remarks.append(
                "LanceDB embeds each text of a contextual model in the context of its neighbours; here each text is a "
                "document of its own"
            )
        return [*super()._remarks(), *remarks]

    def _endpoint(self) -> str:
        if self.base_url is None and (self._key() or "").startswith("al-"):
            return "https://ai.mongodb.com/v1"  # whose keys Voyage's own address refuses
        return super()._endpoint()

    def _roles(self) -> tuple[str, str]:
        return "query", "document"

    def _takes_images(self) -> bool:
        return self._kind() == "multimodal"

    def _picture(self, value: Any, from_query: bool) -> Picture:
        return jpeg_of(value, from_query=from_query)

    def request(self, batch: list[Any], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        return self._vectors_of(self._post(_PATHS[self._kind()], self._body(batch, role)), len(batch))

    def _body(self, batch: list[Any], role: Role) -> dict[str, Any]:
        kind = self._kind()
        body: dict[str, Any] = {"model": self.name, "input_type": "query" if role == "query" else "document"}
        width = self._requested_width()
        if kind == "contextual":
            return {**body, "inputs": [[text] for text in batch], "output_dimension": width}
        body |= {"truncation": True, "output_dtype": None, "output_dimension": width, "encoding_format": "base64"}
        contents = [{"content": [_part(each)]} for each in batch]
        return {**body, **({"inputs": contents} if kind == "multimodal" else {"input": batch})}

    def _vectors_of(self, answer: Any, m: int) -> Any:
        if self._kind() != "contextual":
            return self._listed(answer, m)
        chunks = [self._field(item, "data") for item in in_order(self._field(answer, "data"), m, _HINT)]
        vectors = [self._field(in_order(found, 1, _HINT)[0], "embedding") for found in chunks]
        return self._matrix(vectors, m, self._field(answer, "usage", "total_tokens"))

    def batch_api(self) -> BatchApi | None:
        return None if self._kind() == "multimodal" else _Batches(self, self.vendor.name)


def _part(value: Any) -> dict[str, str]:
    """Return a text or a picture as a multimodal model takes it."""
    if isinstance(value, Picture):
        return {"type": "image_base64", "image_base64": value.url}
    return {"type": "text", "text": value}


class _Batches(FileBatches):
    """Voyage's batches: the model and its parameters belong to the batch, a line has the inputs alone.

    Source: Voyage AI, Batch Inference. Read, not tried.
    """

    window: ClassVar[str] = "12h"
    max_inputs: ClassVar[int] = 100_000

    def line(self, place: int, text: str) -> Any:
        body = self.function._body([text], "source")
        return {"custom_id": str(place), "body": {name: body[name] for name in _INPUTS & body.keys()}}

    def batch(self, tag: str, file: str) -> dict[str, Any]:
        body = self.function._body([], "source")
        parameters = {
            name: value
            for name, value in body.items()
            if name not in {*_INPUTS, "encoding_format"} and value is not None
        }
        path = f"/v1{_PATHS[self.function._kind()]}"
        return {**super().batch(tag, file), "endpoint": path, "request_params": parameters}
