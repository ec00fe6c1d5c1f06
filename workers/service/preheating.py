"""A prompt that is computed before anybody asks for it."""

import itertools

from stafette.workers.errors import RequestError
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams

_LATER = 3  # priority of what nobody waits for

_numbers = itertools.count()


def preheat_request(payload: object) -> Request:
    """Return what a worker has to serve for it."""
    match payload:
        case {"tokens": list(tokens), "lora": lora, "cache_salt": salt}:
            return Request(
                request_id=f"preheat-{next(_numbers)}",
                prompt_token_ids=tokens,
                params=SamplingParams(temperature=0.0, max_tokens=1),
                lora=lora,
                cache_salt=salt,
                priority=_LATER,
                detokenize=False,
            )
    raise RequestError("preheat", payload, "must have tokens, lora and cache_salt")
