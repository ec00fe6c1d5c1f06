"""Brings the blocks of prompts to the host, before somebody asks for them."""

from collections.abc import Iterable

from stafette.kvtransfer.blocks import NO_EXTRAS, BlockHasher, Extras, TokenIds
from stafette.kvtransfer.tiers.job import BlockJob
from stafette.kvtransfer.tiers.store import TieredStore


def preheat_prompts(
    store: TieredStore,
    hasher: BlockHasher,
    prompts: Iterable[TokenIds],
    extras: Extras = NO_EXTRAS,
) -> list[BlockJob]:
    """Preheat the full blocks of each prompt; what they share is loaded once."""
    return [store.preheat(hasher.hash_blocks(tokens, extras=extras)) for tokens in prompts]
