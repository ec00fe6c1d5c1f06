"""POST /v1/embeddings."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stafette.platform.frontend.answering.writer import Placement
from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.errors import InternalError, cannot
from stafette.platform.frontend.ids import new_id
from stafette.platform.frontend.plans import Plan
from stafette.platform.frontend.protocol.embeddings import EmbeddingRequest
from stafette.platform.frontend.routes.completions import as_prompt, prompts_of
from stafette.platform.frontend.routes.services import Services
from stafette.workers.request import OutputDelta
from stafette.workers.sampling.params import SamplingParams

_PARAMS = SamplingParams(max_tokens=1, temperature=0.0, embed=True)


async def embeddings(services: Services, exchange: Exchange) -> None:
    body = await services.read(exchange, EmbeddingRequest)
    exchange.answer_id = new_id("embd-")
    planner = services.planner
    prompts = [await as_prompt(planner.prompts, text) for text in prompts_of(body.input)]
    for prompt in prompts:
        planner.prompts.check_length(prompt, "input")
    plan = planner.of_prompts(body, exchange, prompts, _PARAMS)
    plan.fields = {"prompt_token_ids": "input", "prompt": "input"}
    plan.makes_tokens = False
    await services.serving.whole(exchange, plan, _Vectors(plan, body))


class _Vectors:
    """Collects the vectors; each is shown with length 1, as OpenAI's are."""

    def __init__(self, plan: Plan, body: EmbeddingRequest) -> None:
        self._plan = plan
        self._body = body
        self._vectors: dict[int, npt.NDArray[np.float32]] = {}

    def write(self, deltas: Sequence[OutputDelta]) -> None:
        for delta in deltas:
            if delta.finish_reason == "error":
                raise InternalError(f"the request failed: {delta.error}")
            if delta.embedding is not None:
                self._vectors[delta.index] = _of_length_one(delta.embedding)

    def whole(self, placement: Placement) -> dict[str, Any]:
        if len(self._vectors) < self._plan.num_answers:
            raise InternalError("whoever computed this returned no embedding")
        self._check_dimensions()
        tokens = self._plan.num_prompt_tokens
        shown = {
            "object": "list",
            "model": self._plan.model,
            "data": [self._shown(index) for index in range(self._plan.num_answers)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return shown | {"placement": placement} if self._plan.explain else shown

    def _check_dimensions(self) -> None:
        wanted, own = self._body.dimensions, len(self._vectors[0])
        if wanted not in (None, own):
            raise cannot("dimensions", wanted, f"this model's vectors have {own}: leave it out")

    def _shown(self, index: int) -> dict[str, Any]:
        vector = self._vectors[index]
        as_text = self._body.encoding_format == "base64"
        value = base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist()
        return {"object": "embedding", "index": index, "embedding": value}


def _of_length_one(data: bytes) -> npt.NDArray[np.float32]:
    vector = np.frombuffer(data, "<f4")
    length = float(np.linalg.norm(vector))
    return (vector / length if length > 0 else vector).astype("<f4")
