"""The table of blocks and holders, native and plain, against a model that remembers everything."""

import hashlib
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stafette.router.native import table as native
from stafette.router.table import TIERS, PlainTable

WIDTH = 16
SLOTS = st.integers(0, 5)
PROMPTS = st.text("ab", min_size=1, max_size=7)
TIER = st.sampled_from(TIERS[:3])


def chain_of(name: str) -> bytes:
    """Return the chain of a prompt: one block a letter, each hash stands for all letters so far."""
    return b"".join(block(name[: end + 1]) for end in range(len(name)))


def block(prefix: str) -> bytes:
    return hashlib.blake2b(prefix.encode(), digest_size=16).digest()


def found(table, chain) -> dict[int, tuple[int, ...]]:
    groups = table.match(chain, WIDTH).groups()
    answer = {slot: tuple(depths) for slots, depths in groups for slot in slots}
    assert len(answer) == sum(len(slots) for slots, _ in groups)  # each slot once
    return answer


class Life(RuleBasedStateMachine):
    """Blocks come and go in any order, with holes, repeats and blocks whose parent never came."""

    def make(self):
        raise NotImplementedError

    @initialize()
    def begin(self):
        self.table = self.make()
        self.held: dict[int, dict[str, set[str]]] = {}  # slot -> prefix -> tiers

    @rule(slot=SLOTS, prompt=PROMPTS, start=st.integers(0, 6), tier=TIER)
    def store(self, slot, prompt, start, tier):
        prefixes = [prompt[: end + 1] for end in range(len(prompt))][start:]
        blocks = self.held.setdefault(slot, {})
        expected = sum(prefix not in blocks for prefix in prefixes)

        assert self.table.store(slot, tier, chain_of(prompt)[start * WIDTH :], WIDTH) == expected

        for prefix in prefixes:
            blocks.setdefault(prefix, set()).add(tier)

    @rule(slot=SLOTS, prompts=st.lists(PROMPTS, max_size=4), tier=st.none() | TIER)
    def remove(self, slot, prompts, tier):
        blocks = self.held.get(slot, {})
        gone = 0
        for prefix in prompts:
            tiers = blocks.get(prefix, set())
            left = set() if tier is None else tiers - {tier}
            if tiers and not left:
                del blocks[prefix]
                gone += 1
            elif tiers:
                blocks[prefix] = left

        assert self.table.remove(slot, tier, b"".join(map(block, prompts)), WIDTH) == gone

    @rule(slot=SLOTS)
    def forget(self, slot):
        assert self.table.forget(slot) == len(self.held.pop(slot, {}))

    @rule(prompt=PROMPTS)
    def match(self, prompt):
        expected = {}
        for slot, blocks in self.held.items():
            depths = tuple(
                self._whole(prompt, blocks, set(TIERS[: level + 1])) for level in range(len(TIERS))
            )
            if any(depths):
                expected[slot] = depths

        assert found(self.table, chain_of(prompt)) == expected

    @invariant()
    def counts_are_exact(self):
        stats = self.table.stats()
        assert stats.entries == sum(map(len, self.held.values()))
        assert stats.blocks == len({prefix for blocks in self.held.values() for prefix in blocks})
        assert stats.evicted == 0
        for slot in range(6):
            assert self.table.held(slot) == len(self.held.get(slot, {}))

    def teardown(self):
        self.table.close()

    @staticmethod
    def _whole(prompt, blocks, tiers) -> int:
        """Return how many first blocks are on one of these tiers."""
        for end in range(len(prompt)):
            if not blocks.get(prompt[: end + 1], set()) & tiers:
                return end
        return len(prompt)


class PlainLife(Life):
    def make(self):
        return PlainTable(1_000_000)


class NativeLife(Life):
    def make(self):
        return native.make_table(1_000_000)


class TestPlain(PlainLife.TestCase):
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.skipif(native.load() is None, reason="the native table is not built here")
class TestNative(NativeLife.TestCase):
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_prefix_with_a_hole_counts_only_up_to_the_hole(make_table):
    table = make_table()
    table.store(0, "device", chain_of("abcd"), WIDTH)
    table.remove(0, "device", block("ab"), WIDTH)

    assert found(table, chain_of("abcd")) == {0: (1, 1, 1, 1)}
    table.store(0, "device", block("ab"), WIDTH)
    assert found(table, chain_of("abcd")) == {0: (4, 4, 4, 4)}


def test_slower_tiers_go_on_where_the_device_ends(make_table):
    table = make_table()
    table.store(3, "device", chain_of("ab"), WIDTH)
    table.store(3, "host", chain_of("abcd"), WIDTH)
    table.store(3, "disk", chain_of("abcdef"), WIDTH)

    assert found(table, chain_of("abcdefgh")) == {3: (2, 4, 6, 6)}


def test_block_that_was_used_longest_ago_goes_first(make_table):
    rng = random.Random(0)
    table = make_table(20)
    order: list[str] = []
    names = [chr(ord("a") + number) for number in range(26)]
    for _ in range(2_000):
        name = rng.choice(names)
        if rng.random() < 0.5:
            order = [known for known in order if known != name] + [name]
            order = order[-20:]
            table.store(0, "device", block(name), WIDTH)
        else:
            hit = bool(found(table, block(name)))
            assert hit == (name in order)
            if hit:
                order = [known for known in order if known != name] + [name]

        assert table.held(0) == len(order)


def test_block_that_is_used_while_its_neighbours_go_stays(make_table):
    table = make_table(10)
    for name in "abcdefghij":
        table.store(0, "device", block(name), WIDTH)
    old = b"".join(block(f"old{number}") for number in range(10))
    table.store(0, "device", old, WIDTH)  # one tick for all ten
    table.store(0, "device", block("x"), WIDTH)  # the last of them goes
    for number in range(9):
        assert found(table, block(f"old{number}"))

    table.store(0, "device", block("y"), WIDTH)

    assert found(table, block("x")) == {}
    assert all(found(table, block(f"old{number}")) for number in range(9))


def test_memory_follows_what_is_held_not_what_came_and_went(make_table):
    table = make_table()
    table.store(0, "device", b"".join(block(f"k{n}") for n in range(500)), WIDTH)
    before = table.stats().bytes
    for round_of_all in range(60):
        come = b"".join(block(f"{round_of_all}-{number}") for number in range(1_000))
        table.store(0, "device", come, WIDTH)
        table.remove(0, "device", come, WIDTH)
        table.store(1, "device", block("again"), WIDTH)
        table.remove(1, "device", block("again"), WIDTH)
    for _ in range(40_000):  # one block leaves and comes back, over and over
        table.remove(0, "device", block("k0"), WIDTH)
        table.store(0, "device", block("k0"), WIDTH)

    # Room for the 1,000 that are held at most, and the notes that may be stale.
    assert table.stats().bytes <= before + 1_000 * 44 + 20_000
    assert table.held(0) == 500


def test_evicted_block_is_gone_for_all_its_holders_and_counted(make_table):
    table = make_table(4)
    table.store(0, "device", chain_of("a"), WIDTH)
    table.store(1, "device", chain_of("a"), WIDTH)
    table.store(0, "device", chain_of("xy"), WIDTH)

    table.store(0, "device", chain_of("z"), WIDTH)

    assert found(table, chain_of("a")) == {}
    assert table.stats().entries == 3
    assert table.stats().evicted == 2
    assert (table.held(0), table.held(1)) == (3, 0)


def test_chain_that_must_go_loses_its_end_first(make_table):
    table = make_table(8)
    table.store(0, "device", chain_of("abcde"), WIDTH)

    table.store(0, "device", chain_of("vwxyz"), WIDTH)

    assert found(table, chain_of("abcde")) == {0: (3, 3, 3, 3)}
    assert found(table, chain_of("vwxyz")) == {0: (5, 5, 5, 5)}


def test_chain_that_was_matched_again_still_loses_its_end_first(make_table):
    table = make_table(8)
    table.store(0, "device", chain_of("abcde"), WIDTH)
    table.store(0, "device", chain_of("v"), WIDTH)
    found(table, chain_of("abcde"))

    table.store(0, "device", chain_of("klmno"), WIDTH)

    assert found(table, chain_of("v")) == {}
    assert found(table, chain_of("abcde")) == {0: (3, 3, 3, 3)}


def test_one_run_larger_than_the_bound_is_cut_to_it(make_table):
    table = make_table(100)
    table.store(0, "device", b"".join(number.to_bytes(16, "little") for number in range(9_000)), 16)

    assert table.stats().entries == 100
    assert table.stats().evicted == 8_900


@pytest.mark.parametrize("width", [8, 16, 32])
def test_hash_of_any_width_is_known_by_its_first_bytes(make_table, width):
    table = make_table()
    chain = b"".join(bytes([number]) * width for number in range(1, 40))

    table.store(7, "device", chain, width)

    assert found_width(table, chain, width) == 39
    assert table.stats().blocks == 39


def found_width(table, chain, width) -> int:
    ((slots, depths),) = table.match(chain, width).groups()
    assert list(slots) == [7]
    return depths[0]


def test_many_lives_of_many_slots_leave_nothing_behind(make_table):
    rng = random.Random(1)
    table = make_table()
    for _ in range(400):
        slot = rng.randrange(300)
        if rng.random() < 0.3:
            table.forget(slot)
        else:
            name = "".join(rng.choice("abc") for _ in range(12))
            table.store(slot, "device", chain_of(name), WIDTH)
    for slot in range(300):
        table.forget(slot)

    assert (table.stats().entries, table.stats().blocks) == (0, 0)
    assert table.match(chain_of("abc"), WIDTH).groups() == []


def test_both_tables_agree_through_long_churn():
    if native.load() is None:
        pytest.skip("the native table is not built here")
    rng = random.Random(2)
    plain, fast = PlainTable(10_000_000), native.make_table(10_000_000)
    chains = [b"".join(rng.randbytes(16) for _ in range(rng.randrange(1, 120))) for _ in range(300)]
    for _ in range(6_000):
        chain, slot = rng.choice(chains), rng.randrange(40)
        move = rng.random()
        count = rng.randrange(len(chain) // 16) * 16
        for table in (plain, fast):
            if move < 0.5:
                table.store(slot, "device", chain[: count + 16], WIDTH)
            elif move < 0.9:
                table.remove(slot, "device", chain[count:], WIDTH)
            elif move < 0.92:
                table.forget(slot)
        assert found(plain, chain) == found(fast, chain)
        assert plain.stats().entries == fast.stats().entries
    assert plain.stats().blocks == fast.stats().blocks


def test_closed_table_answers_nothing(make_table):
    table = make_table()
    table.store(0, "device", chain_of("ab"), WIDTH)
    table.close()
    table.close()

    assert table.match(chain_of("ab"), WIDTH).groups() == []
    assert table.held(0) == 0
