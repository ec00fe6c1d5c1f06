"""Eviction policies: each evicts what its plainest form, lists that are searched, would evict."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.tiers.policies.ghosts import Ghosts
from stafette.kvtransfer.tiers.policies.lru import Lru
from stafette.kvtransfer.tiers.policies.two_queue import TwoQueue
from stafette.kvtransfer.tiers.registry import POLICIES, make_policy


class NaiveLru:
    def __init__(self, capacity):
        self.order = []

    def keys(self):
        return set(self.order)

    def add(self, key):
        self.order.append(key)

    def touch(self, key):
        self.order.remove(key)
        self.order.append(key)

    def remove(self, key):
        self.order.remove(key)

    def evict(self):
        return self.order.pop(0)

    def restore(self, key):
        self.order.insert(0, key)


class NaiveLfu:
    """Rank is uses + age; among equals the first of the list, which is in order of use."""

    def __init__(self, capacity):
        self.age = 0
        self.rows = []  # (key, uses, rank)

    def keys(self):
        return {key for key, _, _ in self.rows}

    def add(self, key):
        self.rows.append((key, 1, 1 + self.age))

    def touch(self, key):
        (row,) = (row for row in self.rows if row[0] == key)
        self.rows.remove(row)
        self.rows.append((key, row[1] + 1, row[1] + 1 + self.age))

    def remove(self, key):
        self.rows = [row for row in self.rows if row[0] != key]

    def evict(self):
        victim = min(self.rows, key=lambda row: row[2])
        self.rows.remove(victim)
        self.age = victim[2]
        return victim[0]

    def restore(self, key):
        self.rows.insert(0, (key, 1, self.age))


class NaiveS3Fifo:
    def __init__(self, capacity):
        self.capacity = capacity
        self.small, self.main, self.ghosts, self.uses = [], [], [], {}

    def keys(self):
        return {*self.small, *self.main}

    def add(self, key):
        if key in self.ghosts:
            self.ghosts.remove(key)
            self.main.append(key)
        else:
            self.small.append(key)
        self.uses[key] = 0

    def touch(self, key):
        self.uses[key] = min(3, self.uses[key] + 1)

    def remove(self, key):
        (self.small if key in self.small else self.main).remove(key)

    def evict(self):
        while self.small or self.main:
            if len(self.small) > 0.1 * self.capacity or not self.main:
                key = self.small.pop(0)
                if self.uses[key] == 0:
                    self.ghosts = [*self.ghosts, key][-self.capacity :]
                    return key
                self.uses[key] = 0
            else:
                key = self.main.pop(0)
                if self.uses[key] == 0:
                    return key
                self.uses[key] -= 1
            self.main.append(key)
        raise KeyError

    def restore(self, key):
        if key in self.ghosts:
            self.ghosts.remove(key)
        self.main.insert(0, key)
        self.uses[key] = 0


class NaiveTwoQueue:
    def __init__(self, capacity):
        self.capacity = capacity
        self.probation, self.proven, self.ghosts = [], [], []

    def keys(self):
        return {*self.probation, *self.proven}

    def add(self, key):
        if key in self.ghosts:
            self.ghosts.remove(key)
            self.proven.append(key)
        else:
            self.probation.append(key)

    def touch(self, key):
        self.remove(key)
        self.proven.append(key)

    def remove(self, key):
        (self.probation if key in self.probation else self.proven).remove(key)

    def evict(self):
        if len(self.probation) > self.capacity / 2 or not self.proven:
            key = self.probation.pop(0)
            self.ghosts = [*self.ghosts, key][-self.capacity :]
            return key
        return self.proven.pop(0)

    def restore(self, key):
        if key in self.ghosts:
            self.ghosts.remove(key)
        self.probation.insert(0, key)


class NaiveAdaptive:
    """Small enough a tier that every key is in the sample."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.players = [NaiveLru(capacity), NaiveTwoQueue(capacity)]
        self.trials = [NaiveLru(capacity), NaiveTwoQueue(capacity)]
        self.hits, self.leader, self.uses = [0.0, 0.0], 0, 0

    def keys(self):
        return self.players[0].keys()

    def use(self, key):
        for i, trial in enumerate(self.trials):
            if key in trial.keys():
                trial.touch(key)
                self.hits[i] += 1
            else:
                if len(trial.keys()) == self.capacity:
                    trial.evict()
                trial.add(key)
        self.uses += 1
        if self.uses == 4 * self.capacity:
            self.uses = 0
            other = 1 - self.leader
            if self.hits[other] > 1.02 * self.hits[self.leader]:
                self.leader = other
            self.hits = [hits / 2 for hits in self.hits]

    def add(self, key):
        self.use(key)
        for player in self.players:
            player.add(key)

    def touch(self, key):
        self.use(key)
        for player in self.players:
            player.touch(key)

    def remove(self, key):
        for player in self.players:
            player.remove(key)

    def evict(self):
        key = self.players[self.leader].evict()
        self.players[1 - self.leader].remove(key)
        return key

    def restore(self, key):
        for player in self.players:
            player.restore(key)


NAIVE = {
    "adaptive": NaiveAdaptive,
    "lfu": NaiveLfu,
    "lru": NaiveLru,
    "s3fifo": NaiveS3Fifo,
    "two_queue": NaiveTwoQueue,
}

moves = st.lists(
    st.tuples(st.sampled_from(["use"] * 6 + ["remove", "evict", "spare"]), st.integers(0, 30)),
    max_size=400,
)


@pytest.mark.parametrize("name", POLICIES)
@given(capacity=st.integers(1, 12), moves=moves)
def test_policy_evicts_what_its_plainest_form_evicts(name, capacity, moves):
    policy, naive = make_policy(name, capacity), NAIVE[name](capacity)

    for move, number in moves:
        key = bytes([number])
        known = key in naive.keys()
        if move == "use" and not known and len(naive.keys()) == capacity:
            assert policy.evict() == naive.evict()
        if move == "use":
            for each in (policy, naive):
                (each.touch if known else each.add)(key)
        elif move == "remove" and known:
            policy.remove(key)
            naive.remove(key)
        elif move in ("evict", "spare") and naive.keys():
            victim = naive.evict()
            assert policy.evict() == victim
            if move == "spare":
                policy.restore(victim)
                naive.restore(victim)
        assert len(policy) == len(naive.keys())

    drained = [policy.evict() for _ in range(len(policy))]
    assert drained == [naive.evict() for _ in drained]
    with pytest.raises(KeyError):
        policy.evict()


def hit_rate(policy, keys):
    here, hits = set(), 0
    for key in keys:
        if key in here:
            hits += 1
            policy.touch(key)
            continue
        if len(here) == policy.capacity:
            here.discard(policy.evict())
        here.add(key)
        policy.add(key)
    return hits / len(keys)


def hot_blocks_in_a_stream(length):
    """A block in three is one of 60 hot ones, the others never come back."""
    rng = random.Random(1)
    return [
        rng.randbytes(16) if rng.random() < 2 / 3 else b"%016d" % rng.randrange(60)
        for _ in range(length)
    ]


def windows_that_move_on(length):
    """Whatever comes was here a short while ago, and soon never comes again."""
    rng = random.Random(1)
    return [(b"%016d" % (i // 8 + rng.randrange(60)))[::-1] for i in range(length)]


def test_tournament_finds_the_better_one_on_either_kind_of_work():
    for keys in (hot_blocks_in_a_stream(20_000), windows_that_move_on(20_000)):
        rates = {name: hit_rate(POLICIES[name](100), keys) for name in POLICIES}

        assert rates["adaptive"] >= 0.97 * max(rates["lru"], rates["two_queue"])


def test_tournament_hands_over_when_the_work_changes():
    policy = POLICIES["adaptive"](100)
    hit_rate(policy, hot_blocks_in_a_stream(5_000))
    assert isinstance(policy.leader, TwoQueue)

    for key in [policy.evict() for _ in range(len(policy))]:
        del key
    hit_rate(policy, windows_that_move_on(20_000))

    assert isinstance(policy.leader, Lru)


def test_tournament_samples_a_large_tier_and_still_finds_the_better_one():
    rng = random.Random(2)
    hot = [rng.randbytes(16) for _ in range(5_000)]
    keys = [rng.randbytes(16) if rng.random() < 0.7 else rng.choice(hot) for _ in range(120_000)]

    rates = {name: hit_rate(POLICIES[name](8_192), keys) for name in ("adaptive", "lru")}

    assert rates["adaptive"] > 1.1 * rates["lru"]


def test_ghosts_forget_the_oldest_first():
    ghosts = Ghosts(2)
    for key in (b"a", b"b", b"c"):
        ghosts.add(key)

    assert not ghosts.discard(b"a")
    assert ghosts.discard(b"b")
    assert not ghosts.discard(b"b")
    assert len(ghosts) == 1


def test_unknown_policy_lists_those_that_are_there():
    with pytest.raises(InvalidValue, match="policy = 'lr': must be one of .*; the nearest is lru"):
        make_policy("lr", 1)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_without_room_for_a_block_is_refused(name):
    with pytest.raises(InvalidValue, match="capacity = 0"):
        make_policy(name, 0)
