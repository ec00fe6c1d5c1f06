"""POST /v1/embeddings: the request."""

from typing import Annotated, Literal

from pydantic import Field

from stafette.platform.frontend.protocol.base import RoutedBody
from stafette.platform.frontend.protocol.completions import TokenIds

_MAX_INPUTS = 2048
Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(RoutedBody):
    input: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=_MAX_INPUTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=_MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: float32, little-endian."
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Must be the model's own."
    )
