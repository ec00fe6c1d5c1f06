"""What may be asked of a mock worker, and the words of a prompt."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.blocks import ROOT, BlockHasher, Extras, token_words
from stafette.kvtransfer.connectors.connector import KvRequest
from stafette.kvtransfer.errors import InvalidValue
from stafette.workers.errors import RequestError
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.request import Request

Words = npt.NDArray[np.uint32]


def check_request(request: Request, words: Words, config: MockerConfig) -> None:
    """Raise RequestError when this request could not be served; `words` are its prompt."""
    output = words_of(request.output_token_ids)
    num_tokens = len(words) + len(output)
    _check_wishes(request)
    request.params.check_against(
        vocab_size=config.vocab_size,
        max_logprobs=0,
        max_model_len=config.max_model_len,
        prompt_len=num_tokens,
    )
    budget = config.engine.max_num_batched_tokens
    if num_tokens > budget and not config.engine.enable_chunked_prefill:
        remedy = f"must fit into max_num_batched_tokens = {budget}"
        raise RequestError("prompt", f"{num_tokens} tokens", remedy)
    for tokens in (words, output):
        if len(tokens) and tokens.max() >= config.vocab_size:
            remedy = f"must be in 0..{config.vocab_size - 1}"
            raise RequestError("prompt_token_ids", int(tokens.max()), remedy)


def kv_request(
    request: Request, words: Words, params: Mapping[str, object], hasher: BlockHasher
) -> KvRequest:
    """Return what a hand-over knows of a request: the blocks that may be found, by their hashes.

    The last token is none of theirs: it is always computed.
    """
    extras = Extras(salt=request.cache_salt or "")
    size, output = hasher.block_size, request.output_token_ids
    tokens = np.concatenate((words, words_of(output))) if output else words
    findable = (len(tokens) - 1) // size * size
    hashes = tuple(hasher.hash_blocks(tokens[:findable], ROOT, extras))
    prompt = request.prompt_token_ids
    return KvRequest(request.request_id, prompt, hashes, size, extras, dict(params))


def words_of(tokens: list[int]) -> Words:
    try:
        return np.frombuffer(token_words(tokens), "<u4")
    except InvalidValue as error:
        raise RequestError("prompt_token_ids", tokens, f"must be token ids: {error}") from None


def _check_wishes(request: Request) -> None:
    params = request.params
    for name, value, only in (
        ("n", params.n, 1),
        ("logprobs", params.logprobs, None),
        ("prompt_logprobs", params.prompt_logprobs, None),
        ("structured", params.structured, None),
        ("embed", params.embed, False),
        ("lora", request.lora, None),
    ):
        if value != only:
            raise RequestError(name, value, f"must be {only}: a mock worker has no model")
