"""Block tables: gives sequences their blocks, and lets what they have computed be found again."""

from stafette.kvtransfer.blocks import ROOT, BlockHasher, Extras
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.sequence import Sequence


class BlockTables:
    """The one place where sequences and the pool meet.

    Blocks go back at once, even while a batch that reads them is on its way: batches run in order,
    so whatever a later one writes there comes after. A writer outside that order (a transfer) has
    to wait until the batches that were on their way when it got its blocks are settled.
    """

    def __init__(self, pool: BlockPool, hasher: BlockHasher) -> None:
        self.pool = pool
        self._hasher = hasher
        self._coming: set[bytes] = set()  # hashes of prompt blocks being computed
        self._caching = pool.enable_prefix_caching

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.block_size)

    def prompt_hashes(self, token_ids: list[int], extras: Extras) -> list[bytes]:
        """Return the hashes of the blocks that a prompt may begin with: not of its last token's."""
        size = self.pool.block_size
        findable = (len(token_ids) - 1) // size * size
        return self._hasher.hash_blocks(token_ids[:findable], ROOT, extras)

    def hash_known(self, seq: Sequence) -> None:
        """Hash the blocks that are full of known tokens."""
        size, known = self.pool.block_size, len(seq.hashes)
        if self._caching and len(seq.token_ids) // size > known:
            parent = seq.hashes[-1] if known else ROOT
            seq.hashes += self._hasher.hash_blocks(
                seq.token_ids[known * size :], parent, seq.extras
            )

    def cached(self, seq: Sequence) -> list[int]:
        """Return the cached blocks that a waiting sequence can begin with.

        The last token is always computed, for its logits; all are, where each brings something.
        """
        if not self._caching or seq.params.scores_prompt:
            return []
        self.hash_known(seq)
        return self.pool.match(seq.hashes[: self._num_findable(seq)])

    def shares_work(self, seq: Sequence, num_cached: int) -> bool:
        """Whether at least half of what is left to compute is being computed by another now."""
        if seq.params.scores_prompt:
            return False
        shared = 0
        for block_hash in seq.hashes[num_cached : self._num_findable(seq)]:
            if block_hash not in self._coming:
                break
            shared += 1
        size = self.pool.block_size
        return shared > 0 and 2 * shared * size >= len(seq.token_ids) - num_cached * size

    def take(self, seq: Sequence, cached: list[int], num_blocks: int, spare: int) -> bool:
        """Begin a table of `num_blocks` blocks; False, with nothing taken, when too few are left.

        `spare` is how many must be left over.
        """
        table = self.pool.take(cached, num_blocks, spare)
        if table is None:
            return False
        seq.block_table = table
        seq.num_published = len(cached)
        seq.num_computed = len(cached) * self.pool.block_size
        seq.generation = self.pool.generation
        self._coming.update(seq.hashes[len(cached) :])
        if not seq.num_preemptions:
            self._count_lookup(seq)
        return True

    def grow(self, seq: Sequence, num_blocks: int) -> bool:
        """Add blocks to a table until it has `num_blocks`."""
        new = self.pool.try_allocate(num_blocks - len(seq.block_table))
        if new is None:
            return False
        seq.block_table = [*seq.block_table, *new]
        return True

    def publish(self, seq: Sequence, num_valid: int) -> None:
        """Let the full blocks among the first `num_valid` tokens, which are computed, be found."""
        full = num_valid // self.pool.block_size
        if full <= seq.num_published or not self._caching:
            return
        self.hash_known(seq)
        first, seq.num_published = seq.num_published, full
        self._coming.difference_update(seq.hashes[first:full])
        if seq.generation == self.pool.generation:  # else the cache was reset meanwhile
            seq.block_table = self.pool.publish(seq.block_table, seq.hashes, first, full)

    def release(self, seq: Sequence) -> None:
        """Give back a sequence's blocks."""
        self._coming.difference_update(seq.hashes[seq.num_published :])
        self.pool.release(seq.block_table)
        seq.block_table = []
        seq.num_published = seq.num_computed = 0

    def _num_findable(self, seq: Sequence) -> int:
        return (len(seq.token_ids) - 1) // self.pool.block_size

    def _count_lookup(self, seq: Sequence) -> None:
        seq.num_cached_tokens = seq.num_computed
        if self._caching and not seq.params.scores_prompt:
            self.pool.queries += seq.num_prompt_tokens
            self.pool.hits += seq.num_computed
