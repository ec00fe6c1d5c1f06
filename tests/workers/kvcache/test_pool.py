"""The block pool: references, prefixes, eviction, leases, events."""

import random
from collections import Counter

import pytest

from stafette.kvtransfer.events import AllCleared, BlockRemoved, BlockStored
from stafette.workers.kvcache.pool import BlockPool

CHAIN = [b"a", b"ab", b"abc", b"abcd"]


@pytest.fixture
def events():
    return []


@pytest.fixture
def pool(events):
    return BlockPool(6, 16, on_event=events.append)


def cache(pool: BlockPool, hashes: list[bytes]) -> list[int]:
    """Compute a chain, publish it, and let it go."""
    table = pool.publish(pool.take(pool.match(hashes), len(hashes)), hashes, 0, len(hashes))
    pool.release(table)
    return table


def test_all_or_nothing_is_allocated(pool):
    assert pool.try_allocate(7) is None
    assert pool.num_available == 6

    blocks = pool.try_allocate(6)

    assert sorted(blocks) == list(range(6))
    assert pool.usage == 1.0
    assert pool.try_allocate(1) is None


def test_released_blocks_can_be_taken_again(pool):
    blocks = pool.try_allocate(6)

    pool.release(blocks[:2])

    assert sorted(pool.try_allocate(2)) == sorted(blocks[:2])


def test_released_more_often_than_taken_is_a_bug(pool):
    blocks = pool.try_allocate(1)
    pool.release(blocks)

    with pytest.raises(AssertionError, match="more often"):
        pool.release(blocks)


def test_match_finds_the_longest_cached_prefix(pool):
    table = cache(pool, CHAIN)

    assert pool.match([b"a", b"ab", b"abx"]) == table[:2]
    assert pool.match([b"x", b"ab"]) == []


def test_cached_blocks_of_a_table_are_shared(pool):
    first = cache(pool, CHAIN)

    one = pool.take(pool.match(CHAIN), 4)
    two = pool.take(pool.match(CHAIN[:2]), 3)

    assert one == first
    assert two[:2] == first[:2]
    assert two[2] not in first
    assert [pool.references(block) for block in first] == [2, 2, 1, 1]
    assert pool.num_held == 5


def test_take_counts_idle_blocks_as_used_up(pool):
    cache(pool, CHAIN)  # 4 idle, 2 free

    assert pool.take(pool.match(CHAIN), 7) is None
    assert pool.take(pool.match(CHAIN), 6, spare=1) is None
    assert pool.num_held == 0
    assert pool.take(pool.match(CHAIN), 6) is not None


def test_free_blocks_are_taken_before_cached_ones_go(pool, events):
    cache(pool, CHAIN)

    pool.try_allocate(2)

    assert len(pool.cached_hashes) == 4
    assert not any(isinstance(event, BlockRemoved) for event in events)


def test_oldest_chain_goes_first_from_its_leaf(pool, events):
    cache(pool, [b"x", b"xy"])
    cache(pool, CHAIN)
    cache(pool, [b"x", b"xy"])  # used again

    pool.try_allocate(3)
    pool.try_allocate(2)

    assert events[-2:] == [BlockRemoved((b"abcd", b"abc", b"ab")), BlockRemoved((b"a", b"xy"))]
    assert pool.cached_hashes == [b"x"]


def test_held_block_is_never_evicted(pool):
    table = cache(pool, CHAIN)
    pool.pin(table)

    assert pool.try_allocate(3) is None
    assert pool.try_allocate(2) is not None
    assert pool.match(CHAIN) == table


def test_block_under_lease_outlives_its_table(pool):
    table = pool.publish(pool.try_allocate(2), [b"a", b"ab"], 0, 2)
    pool.pin(table)

    pool.release(table)

    assert [pool.references(block) for block in table] == [1, 1]
    assert not set(table) & set(pool.try_allocate(4))
    pool.unpin(table)
    assert pool.num_available == 2


def test_parent_stays_while_its_child_is_under_lease(pool):
    table = cache(pool, CHAIN)
    pool.pin([table[3]])

    assert pool.try_allocate(3) is None  # two are free, the rest is the child's prefix

    assert pool.match(CHAIN) == table
    assert pool.num_held == 1
    pool.unpin([table[3]])
    assert pool.try_allocate(6) is not None


def test_parents_of_a_lease_that_ended_go_right_after_their_child(pool, events):
    leaf = cache(pool, CHAIN)[3]
    pool.pin([leaf])
    pool.release(pool.try_allocate(2))
    cache(pool, [b"x", b"xy"])
    assert pool.try_allocate(3) is None  # looks for leaves, and sets the parents aside
    pool.unpin([leaf])
    cache(pool, [b"y", b"yz"])

    pool.try_allocate(3)

    assert events[-1] == BlockRemoved((b"abcd", b"abc", b"ab"))


def test_same_content_twice_ends_in_one_block(pool, events):
    one = pool.publish(pool.try_allocate(2), [b"a", b"ab"], 0, 2)

    two = pool.publish(pool.try_allocate(3), [b"a", b"ab", b"abc"], 0, 3)

    assert two[:2] == one
    assert [pool.references(block) for block in one] == [2, 2]
    assert pool.num_held == 3
    assert events == [BlockStored(None, (b"a", b"ab")), BlockStored(b"ab", (b"abc",))]


def test_stored_blocks_are_told_with_their_parent(pool, events):
    table = pool.try_allocate(3)

    pool.publish(table, [b"a"], 0, 1)
    pool.publish(table, CHAIN[:3], 1, 3)

    assert events == [BlockStored(None, (b"a",)), BlockStored(b"a", (b"ab", b"abc"))]


def test_reset_forgets_everything_and_keeps_what_is_held(pool, events):
    table = pool.publish(pool.try_allocate(2), [b"a", b"ab"], 0, 2)
    cache(pool, [b"x"])

    pool.reset_prefix_cache()

    assert pool.cached_hashes == []
    assert pool.num_held == 2
    assert pool.num_idle == 0
    assert pool.generation == 1
    assert events[-1] == AllCleared()
    pool.release(table)
    assert len(pool.try_allocate(6)) == 6


def test_random_use_keeps_the_books_and_evicts_like_a_plain_model():
    rng = random.Random(0)
    removed: list[bytes] = []
    pool = BlockPool(24, 1, on_event=lambda e: removed.extend(_removed(e)))
    tables: list[tuple[list[int], list[bytes]]] = []
    last_use: dict[bytes, int] = {}
    for now in range(3000):
        if tables and (rng.random() < 0.5 or pool.num_available < 6):
            table, hashes = tables.pop(rng.randrange(len(tables)))
            pool.release(table)
            last_use |= {block_hash: now for block_hash in hashes}
            continue
        text = bytes(rng.choice(b"ab") for _ in range(rng.randint(1, 6)))
        hashes = [text[: i + 1] for i in range(len(text))]
        idle = _idle(pool, tables)
        removed.clear()
        table = pool.take(pool.match(hashes), len(hashes))
        table = pool.publish(table, hashes, 0, len(hashes))
        tables.append((table, hashes))

        assert removed == _evicted_by_model(idle - set(hashes), last_use, len(removed))
        counted = Counter(block for table, _ in tables for block in table)
        assert all(pool.references(block) == counted[block] for block in range(24))


def _removed(event) -> tuple[bytes, ...]:
    return event.hashes if isinstance(event, BlockRemoved) else ()


def _idle(pool: BlockPool, tables) -> set[bytes]:
    return set(pool.cached_hashes) - {h for _, hashes in tables for h in hashes}


def _evicted_by_model(idle: set[bytes], last_use: dict[bytes, int], count: int) -> list[bytes]:
    """Choose, one by one, the least recently used of the leaves; of one table, the last block."""
    gone = []
    for _ in range(count):
        leaves = [h for h in idle if not any(o != h and o.startswith(h) for o in idle)]
        oldest = min(leaves, key=lambda h: (last_use[h], -len(h)))
        idle = idle - {oldest}
        gone.append(oldest)
    return gone
