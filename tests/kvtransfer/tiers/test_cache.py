"""The books of a tier: slots, pins, chains, and what may be evicted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.tiers.cache import BlockCache, Entry
from stafette.kvtransfer.tiers.policies.lru import Lru
from stafette.kvtransfer.tiers.registry import POLICIES, make_policy


def cache_of(num_slots, *chains, leaves_first=True):
    """Each name begins with its parent's."""
    cache = BlockCache(num_slots, Lru(num_slots), leaves_first)
    for chain in chains:
        put(cache, *chain)
    return cache


def put(cache, *names):
    slots, evicted = cache.reserve(len(names))
    pairs = zip(names, slots, strict=False)
    cache.store([Entry(name.encode(), parent_of(name), slot) for name, slot in pairs])
    return [entry.key.decode() for entry in evicted]


def parent_of(name):
    return name[:-1].encode() or ROOT


def names(cache):
    return {entry.key.decode() for entry in cache}


def test_only_a_prefix_without_gaps_counts_as_cached():
    cache = cache_of(4, ["a", "ab", "abc"])
    cache.remove(b"ab")

    assert cache.num_cached([b"a", b"ab", b"abc"]) == 1
    assert cache.num_cached([b"x"]) == 0


def test_chain_goes_from_its_end():
    cache = cache_of(3, ["a", "ab", "abc"])

    assert put(cache, "x") == ["abc"]
    assert put(cache, "y") == ["ab"]


def test_parent_stays_while_a_child_that_was_used_later_is_here():
    cache = cache_of(3, ["a"], ["b"], ["ab"])

    assert put(cache, "x") == ["b"]
    assert put(cache, "y") == ["ab"]  # before its parent, which is older
    assert put(cache, "z") == ["a"]


def test_without_leaves_first_the_policy_alone_decides():
    cache = cache_of(3, ["a"], ["b"], ["ab"], leaves_first=False)

    assert put(cache, "x") == ["a"]


def test_parent_that_is_used_while_set_aside_is_young_again():
    cache = cache_of(3, ["a"], ["ab"], ["c"])
    cache.touch([b"ab"])
    assert put(cache, "x") == ["c"]  # after `a` was set aside
    cache.touch([b"a"])

    assert put(cache, "y") == ["ab"]
    assert put(cache, "z") == ["x"]


def test_pinned_block_is_never_evicted_and_goes_first_when_released():
    cache = cache_of(2, ["a"], ["b"])
    pinned = cache.pin(b"a")
    cache.pin(b"a")
    assert put(cache, "x") == ["b"]
    cache.unpin(pinned)
    assert put(cache, "y") == ["x"]

    cache.unpin(pinned)

    assert put(cache, "z") == ["a"]


def test_when_all_are_pinned_there_is_no_slot():
    cache = cache_of(2, ["a"], ["b"])
    cache.pin(b"a")
    cache.pin(b"b")

    assert cache.reserve(1) == ([], [])


def test_slot_of_a_block_removed_while_pinned_is_not_reused_before_it_is_released():
    cache = cache_of(2, ["a"], ["b"])
    pinned = cache.pin(b"a")
    cache.remove(b"a")
    put(cache, "a")  # again, elsewhere

    assert pinned.slot not in [entry.slot for entry in cache]
    cache.unpin(pinned)
    assert cache.reserve(1)[0] == [pinned.slot]


def test_slots_given_back_are_free():
    cache = cache_of(2)
    slots, _ = cache.reserve(2)

    cache.give_back(slots)

    assert cache.num_free == 2


def test_evicted_slots_are_free_when_they_are_given_back():
    cache = cache_of(3, ["a", "ab", "abc"])

    evicted = cache.evict(2)

    assert [entry.key for entry in evicted] == [b"abc", b"ab"]
    assert names(cache) == {"a"}
    assert cache.num_free == 0
    cache.give_back(entry.slot for entry in evicted)
    assert cache.num_free == 2


def test_nominated_block_is_found_until_it_is_retired():
    cache = cache_of(2, ["a"], ["b"])

    (nominated,) = cache.nominate(1)

    assert names(cache) == {"a", "b"}
    assert put(cache, "x") == ["b"]  # the nominated one is out of the running
    assert cache.retire(nominated)
    assert names(cache) == {"x"}
    assert cache.num_free == 1


def test_nominated_block_that_was_used_or_pinned_stays():
    cache = cache_of(3, ["a"], ["b"], ["c"])
    a, b, c = cache.nominate(3)
    cache.touch([b"a"])
    pinned = cache.pin(b"b")

    assert [cache.retire(entry) for entry in (a, b, c)] == [False, False, True]

    assert names(cache) == {"a", "b"}
    cache.unpin(pinned)
    assert put(cache, "x", "y", "z") == ["b", "a"]


def test_nominated_block_that_was_removed_meanwhile_frees_its_slot_once():
    cache = cache_of(1, ["a"])
    (nominated,) = cache.nominate(1)
    cache.remove(b"a")
    assert cache.num_free == 0

    assert not cache.retire(nominated)

    assert cache.num_free == 1


def test_block_that_came_back_to_its_slot_is_not_the_one_that_left():
    cache = cache_of(1, ["a"])
    before = cache.get(b"a")
    cache.remove(b"a")
    assert put(cache, "a") == []

    assert cache.get(b"a").slot == before.slot
    assert cache.get(b"a") != before


def test_pinned_blocks_and_parents_are_not_nominated():
    cache = cache_of(3, ["a", "ab"], ["c"])
    cache.pin(b"c")

    assert [entry.key for entry in cache.nominate(3)] == [b"ab"]


def test_adopted_blocks_keep_their_slots_and_go_in_their_order():
    cache = BlockCache(4, Lru(4))
    cache.adopt([Entry(b"x", ROOT, 2), Entry(b"y", ROOT, 0)])

    assert sorted(cache.free_slots()) == [1, 3]
    assert put(cache, "m", "n") == []
    assert put(cache, "o", "p") == ["x", "y"]


class Lives(RuleBasedStateMachine):
    """Random lives of a small tier, beside a dictionary."""

    policy = "lru"
    SLOTS = 5

    def __init__(self):
        super().__init__()
        self.cache = BlockCache(self.SLOTS, make_policy(self.policy, self.SLOTS))
        self.model: dict[bytes, Entry] = {}
        self.pins: list[Entry] = []
        self.nominated: list[Entry] = []

    keys = st.text("ab", min_size=1, max_size=4).map(str.encode)

    @rule(key=keys)
    def insert(self, key):
        if key in self.model:
            self.cache.touch([key])
            return
        slots, evicted = self.cache.reserve(1)
        for entry in evicted:
            assert entry not in self.pins
            del self.model[entry.key]
            assert not any(other[:-1] == entry.key for other in self.model)
        if not slots:
            children = {other[:-1] for other in self.model}
            assert all(e in self.pins or e.key in children for e in self.model.values())
            return
        entry = Entry(key, key[:-1] or ROOT, slots[0])
        assert slots[0] not in [pinned.slot for pinned in self.pins]
        self.cache.store([entry])
        self.model[key] = entry

    @rule(key=keys)
    def use(self, key):
        chain = [key[: i + 1] for i in range(len(key))]
        self.cache.touch(chain[: self.cache.num_cached(chain)])

    @rule(key=keys)
    def remove(self, key):
        assert self.cache.remove(key) == self.model.pop(key, None)

    @rule(key=keys)
    def pin(self, key):
        if key in self.model:
            self.pins.append(self.cache.pin(key))

    @rule(index=st.integers(0, 9))
    def unpin(self, index):
        if self.pins:
            self.cache.unpin(self.pins.pop(index % len(self.pins)))

    @rule(count=st.integers(1, 3))
    def nominate(self, count):
        nominated = self.cache.nominate(count)
        assert len(nominated) <= count
        assert not [entry for entry in nominated if entry in self.pins]
        self.pins += nominated
        self.nominated += nominated

    @rule(index=st.integers(0, 9))
    def retire(self, index):
        if self.nominated:
            entry = self.nominated.pop(index % len(self.nominated))
            if entry not in self.pins:  # it was unpinned as if it were anybody's
                return
            self.pins.remove(entry)
            if self.cache.retire(entry):
                assert entry not in self.pins
                assert self.model.pop(entry.key) == entry

    @invariant()
    def the_books_agree(self):
        assert {entry.key: entry for entry in self.cache} == self.model
        pinned = {entry.slot for entry in self.pins}
        assert self.cache.num_pinned == len(pinned)
        assert self.cache.num_free == self.SLOTS - len(pinned | {e.slot for e in self.cache})


@pytest.mark.parametrize("policy", POLICIES)
def test_books_are_exact_in_random_lives(policy):
    case = type("Case", (Lives,), {"policy": policy}).TestCase
    case.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
    case("runTest").runTest()


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=60), st.integers(1, 8))
def test_whatever_the_order_of_use_no_child_outlives_its_parent(prompts, num_slots):
    cache = cache_of(num_slots)

    for prompt in prompts:
        chain = [prompt[: i + 1] for i in range(len(prompt))]
        found = cache.num_cached([name.encode() for name in chain])
        cache.touch([name.encode() for name in chain[:found]])
        pinned = [cache.pin(name.encode()) for name in chain[:found]]
        if found < len(chain):
            put(cache, chain[found])
        for entry in pinned:
            cache.unpin(entry)

    assert all(len(name) == 1 or name[:-1] in names(cache) for name in names(cache))
