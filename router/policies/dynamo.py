"""`dynamo`: the cost that Dynamo's router computes, in blocks, to compare with.

cost = scale * max((queued tokens + prompt tokens) / block size - credit, 0) + blocks in use there
with the request's. The credit is the overlap, weighed by tier.
"""

from dataclasses import dataclass, fields
from math import ceil

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.router.cost import Terms
from stafette.router.errors import InvalidValue
from stafette.router.policies.simple import SimplePolicy
from stafette.router.request import Candidate, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoConfig:
    """Names and defaults are those of Dynamo 1.6.1."""

    overlap_score_credit: float = 1.0
    host_cache_hit_weight: float = 0.75
    disk_cache_hit_weight: float = 0.25
    prefill_load_scale: float = 1.0
    decode_active_request_weight: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                value = getattr(self, field.name)
                raise InvalidValue(f"dynamo.{field.name}", value, "must be at least 0")


class DynamoPolicy(SimplePolicy):
    term = "blocks"
    wants_shared_blocks = True

    def __init__(self, config: DynamoConfig) -> None:
        self._config = config

    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float:
        weights, size = self._config, terms.block_size
        overlap, load = candidate.overlap, candidate.load
        prefill = (load.charged_tokens + request.prompt_tokens) / size
        credit = (
            weights.overlap_score_credit * overlap.device
            + weights.host_cache_hit_weight * overlap.host
            + weights.disk_cache_hit_weight * overlap.disk
        )
        own = len(request.chain) // HASH_BYTES or ceil(request.prompt_tokens / size)
        decode = load.used_blocks + own - candidate.shared_blocks
        active = weights.decode_active_request_weight * load.requests
        return weights.prefill_load_scale * max(prefill - credit, 0.0) + decode + active
