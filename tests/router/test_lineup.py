"""A large fleet is calculated at once: every decision is what looking at each target would give."""

import random
from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.events import BlockRemoved, BlockStored, EventBatch
from stafette.router.errors import NoCandidate
from stafette.router.filters import FilterConfig
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec
from stafette.router.lineup import Lineup
from stafette.router.load import LoadReport
from stafette.router.performance import Performance, StepReport
from stafette.router.policies import kv
from stafette.router.registry import PolicyConfig
from stafette.router.request import Request, WorkerSpec
from stafette.router.router import KvRouter, RouterConfig
from stafette.router.transfer_cost import TransferConfig

SIZE = 10
HASHERS = Hashers("key", SIZE)
FINGERPRINTS = {model: HASHERS.of(model).fingerprint for model in ("m", "n")}
PRIORS = {
    "fast": Performance(step_ms=1.0, prefill_ms_per_token=0.1, max_num_batched_tokens=40),
    "slow": Performance(step_ms=3.0, prefill_ms_per_token=0.7, prefill_stalls_decode=0.5),
}
CHAINS = [tuple(HASHERS.of("m").hash_blocks([first, *range(1, 12 * SIZE)])) for first in range(3)]

targets = st.integers(0, 7).map(lambda number: f"w{number}")
workers = st.builds(
    WorkerSpec,
    cache=st.builds(
        lambda target, model, events: CacheSpec(
            target=target,
            block_size=SIZE,
            model=model,
            fingerprint=FINGERPRINTS[model],
            events=events,
        ),
        targets,
        st.sampled_from("mmmn"),
        st.sampled_from([True, True, False]),
    ),
    role=st.sampled_from(["both", "both", "prefill", "decode"]),
    worker_class=st.sampled_from(sorted(PRIORS)),
    loras=st.sampled_from([None, None, frozenset("a")]),
    taints=st.sampled_from([frozenset(), frozenset(), frozenset("t")]),
    host=st.sampled_from(["", "", "h1", "h2"]),
    rack=st.sampled_from(["", "r1", "r2"]),
    total_blocks=st.sampled_from([0, 0, 15, 40]),
    max_requests=st.sampled_from([0, 0, 2]),
    block_bytes=st.sampled_from([1_000, 1_000_000]),
)
requests = st.builds(
    lambda chain, blocks, rest, **options: Request(
        request_id="",
        chain=b"".join(CHAINS[chain][:blocks]),
        prompt_tokens=blocks * SIZE + rest,
        model="m",
        **options,
    ),
    st.integers(0, 2),
    st.integers(0, 12),
    st.integers(1, SIZE),
    expected_output_tokens=st.sampled_from([None, 1, 50]),
    lora=st.sampled_from(["", "", "a", "b"]),
    tolerations=st.sampled_from([frozenset(), frozenset("t")]),
    pinned=st.sampled_from([None] * 5 + ["w1"]),
    session=st.sampled_from(["", "s"]),
)
numbers = st.integers(0, 30)
moments = st.one_of(
    st.tuples(st.just("register"), workers),
    st.tuples(st.just("unregister"), targets),
    st.tuples(st.just("state"), targets, st.booleans(), st.booleans()),
    st.tuples(st.just("role"), targets, st.sampled_from(["both", "prefill", "decode"])),
    st.tuples(st.just("hold"), targets, st.integers(0, 2), st.integers(1, 12)),
    st.tuples(st.just("evict"), targets, st.integers(0, 2), st.integers(0, 11)),
    st.tuples(st.just("load"), targets, st.integers(0, 300), st.integers(0, 5), numbers),
    st.tuples(st.just("step"), targets, st.floats(0.5, 20.0), st.integers(0, 40)),
    st.tuples(st.just("place"), requests),
    st.tuples(st.just("place"), requests),
    st.tuples(st.just("first_token"), numbers),
    st.tuples(st.just("progress"), numbers, st.integers(1, 60)),
    st.tuples(st.just("free"), numbers),
    st.tuples(st.just("wait"), st.sampled_from([-1.0, 0.01, 0.3, 0.3, 20.0])),
)


class Twins:
    """Two routers that are told the same; one looks at each target, one at all of them at once."""

    def __init__(self, config: RouterConfig) -> None:
        self.now = 100.0
        self.seq = 0
        self.placed = 0
        self.routers = [KvRouter(HASHERS, config, lambda: self.now) for _ in range(2)]
        self.one_by_one, self.at_once = self.routers
        self.one_by_one.fleet.many, self.at_once.fleet.many = 1_000, 1

    def tell(self, moment) -> None:
        what, *values = moment
        getattr(self, what)(*values)

    def register(self, spec) -> None:
        for router in self.routers:
            router.register(spec)

    def wait(self, seconds) -> None:
        self.now += seconds

    def hold(self, target, chain, blocks) -> None:
        tier = ("device", "host", "disk")[self.seq % 3 if blocks % 2 else 0]
        self._event(target, BlockStored(None, CHAINS[chain][:blocks], tier=tier))

    def evict(self, target, chain, block) -> None:
        self._event(target, BlockRemoved((CHAINS[chain][block],)))

    def place(self, request) -> None:
        self.placed += 1
        request = _named(request, str(self.placed))
        one, other = (_outcome(router, request, self.now) for router in self.routers)
        # Only names are compared by pytest: to compare long texts would take it minutes.
        assert [name for name in {**one, **other} if one.get(name) != other.get(name)] == []

    def unregister(self, target) -> None:
        self._each(target, lambda router: router.unregister(target))

    def state(self, target, healthy, draining) -> None:
        self._each(target, lambda router: router.set_state(target, healthy, draining))

    def role(self, target, role) -> None:
        self._each(target, lambda router: router.set_role(target, role))

    def load(self, target, queued, running, used) -> None:
        report = LoadReport(self.now, queued, running, used)
        self._each(target, lambda router: router.report_load(target, report))

    def step(self, target, wall_ms, tokens) -> None:
        report = StepReport(wall_ms, tokens, tokens**2 / 2, 3, 100)
        self._each(target, lambda router: router.report_steps(target, [report]))

    def first_token(self, number) -> None:
        self._booked(number, lambda router: router.first_token(str(number), 10, 5.0))

    def progress(self, number, tokens) -> None:
        self._booked(number, lambda router: router.progress(str(number), tokens))

    def free(self, number) -> None:
        self._booked(number, lambda router: router.free(str(number), 20))

    def close(self) -> None:
        for router in self.routers:
            router.close()

    def _event(self, target, event) -> None:
        self.seq += 1
        for router in self.routers:
            router.index.on_batch(EventBatch(target, 1, self.seq, 0.0, (event,)))

    def _each(self, target, action) -> None:
        for router in self.routers:
            if target in router.fleet.members:
                action(router)

    def _booked(self, number, action) -> None:
        for router in self.routers:
            if str(number) in router.sharing.own:
                action(router)


def _named(request, name):
    values = {field: getattr(request, field) for field in Request.__slots__}
    return Request(**(values | {"request_id": name}))


def _outcome(router, request, now):
    """Return all that is told of a decision, and the queue that admission would see."""
    queue_ms = router.fleet.least_queue_ms(request, now)
    try:
        placement = router.place(request)
    except NoCandidate as error:
        return {"reasons": error.reasons, "queue_ms": queue_ms}
    (decision,) = router.explain(1)
    told = {"placement": placement, "queue_ms": queue_ms, "counters": router.decisions.counters}
    return told | decision.to_dict()


@settings(max_examples=60, deadline=None)
@given(
    group=st.lists(workers, min_size=4, max_size=8),
    course=st.lists(moments, max_size=40),
    pull=st.booleans(),
    filters=st.sampled_from(
        [FilterConfig(), FilterConfig(max_queued_tokens=90, max_used_share=0.8)]
    ),
    most=st.sampled_from([1, 3, 32]),
)
def test_all_at_once_decides_and_explains_as_one_by_one(group, course, pull, filters, most):
    config = RouterConfig(priors=PRIORS, filters=filters, transfer=TransferConfig(pull=pull))
    twins = Twins(config)

    with patch.object(kv, "_MOST", most):
        for spec in group:
            twins.register(spec)
        for moment in course:
            twins.tell(moment)

    twins.close()


@pytest.mark.parametrize("seed", range(60))
def test_pairs_that_are_not_calculated_are_none_of_the_cheapest(seed):
    rng = random.Random(seed)
    rates = rng.choice([{}, {}, {"far_gb_s": 50.0, "far_ms": 0.0}])  # also: far is the fastest
    network = TransferConfig(pull=rng.random() < 0.3, **rates)
    twins = Twins(RouterConfig(priors=PRIORS, transfer=network))
    levels = rng.choice([2, 1_000])  # many equal loads, or none
    scarce = rng.random() < 0.4

    for number in range(rng.randint(8, 30)):
        host, rack = rng.choice([("", ""), ("", "r1"), (f"h{number // 6}", f"r{number // 12}")])
        total = rng.choice([0, 26, 30]) if scarce else 0
        kind = {"worker_class": rng.choice(["fast", "fast", "slow"]), "block_bytes": 1_000_000}
        role = "prefill" if number % 3 == 0 else "decode"
        place = {"host": host, "rack": rack, "role": role, "total_blocks": total}
        twins.register(_plain(f"w{number}", **(kind | place)))
        if role == "prefill":
            twins.load(f"w{number}", rng.randrange(levels), 0, 0)
        else:
            if scarce and rng.random() < 0.7:
                twins.place(_prompt(rng.randrange(2), 12, pinned=f"w{number}"))
                twins.first_token(twins.placed)
            twins.load(f"w{number}", 0, rng.randrange(min(levels, 40)), rng.choice([0, 12, 20]))
        if rng.random() < 0.3:
            twins.hold(f"w{number}", rng.randrange(2), rng.randint(1, 12))
    for most in (1, 2, 3):
        with patch.object(kv, "_MOST", most):
            twins.place(_prompt(rng.randrange(3), rng.randint(4, 12)))

    twins.close()


def test_a_decoder_that_is_worse_by_itself_wins_where_the_way_to_it_is_the_faster_one():
    slow_host = TransferConfig(pull=False, same_host_gb_s=0.001, far_gb_s=50.0, far_ms=0.0)
    twins = Twins(RouterConfig(priors=PRIORS, transfer=slow_host))
    for name, role, host in (("p", "prefill", "h"), ("near", "decode", "h"), ("far", "decode", "")):
        twins.register(_plain(name, role=role, host=host, block_bytes=1_000_000))
    twins.load("near", 0, 20, 10)
    twins.load("far", 0, 21, 10)

    with patch.object(kv, "_MOST", 1):
        twins.place(_prompt(0, 12, expected_output_tokens=1))

    (decision,) = twins.at_once.explain(1)
    assert [one.decode for one in decision.options if one.prefill] == ["far"]
    twins.close()


@pytest.mark.parametrize("many", [1, 1_000])
@pytest.mark.parametrize(("prefillers", "decoders"), [(0, 120), (12, 15)])
def test_equal_targets_share_the_work_however_many_they_are(many, prefillers, decoders):
    router = KvRouter(HASHERS, RouterConfig(priors=PRIORS), lambda: 100.0)
    router.fleet.many = many
    for number in range(prefillers + decoders):
        role = "prefill" if number < prefillers else "decode"
        router.register(_plain(f"w{number}", role=role))
        if role == "decode":  # too busy to compute prompts where somebody else can
            router.report_load(f"w{number}", LoadReport(100.0, 0, 9, 10))

    prompts = [_named(_prompt(0, 12), f"r{number}") for number in range(600)]
    chosen = [router.preview(prompt) for prompt in prompts]

    decode, prefill = Counter(one.decode for one in chosen), Counter(one.prefill for one in chosen)
    assert len(decode) > 0.9 * decoders
    assert max(decode.values()) < 4 * len(chosen) / decoders
    assert len(prefill) == max(1, prefillers)
    router.close()


def test_equal_targets_are_chosen_alike_in_whatever_order_they_registered():
    routers = [KvRouter(HASHERS, RouterConfig(priors=PRIORS)) for _ in range(3)]
    names = [f"w{number}" for number in range(60)]
    for router, order, many in zip(routers, (names, names[::-1], names), (1, 1, 99), strict=True):
        router.fleet.many = many
        for name in order:
            router.register(_plain(name, role="prefill" if name < "w3" else "decode"))

    for number in range(20):
        one, *others = (router.preview(_named(_prompt(0, 0), f"r{number}")) for router in routers)
        assert others == [one, one]

    for router in routers:
        router.close()


def _plain(target, **options):
    cache = CacheSpec(target=target, block_size=SIZE, model="m", fingerprint=FINGERPRINTS["m"])
    return WorkerSpec(cache=cache, **({"worker_class": "fast"} | options))


@pytest.mark.parametrize("name", ["round_robin", "least_loaded", "dynamo", "random", "session"])
def test_policies_that_look_at_each_target_get_the_same_ones(name):
    twins = Twins(RouterConfig(priors=PRIORS, policy=PolicyConfig(name=name)))
    for number in range(5):
        cache = CacheSpec(
            target=f"w{number}", block_size=SIZE, model="m", fingerprint=FINGERPRINTS["m"]
        )
        role = ("both", "prefill", "decode", "both", "prefill")[number]
        twins.register(WorkerSpec(cache=cache, role=role, total_blocks=40))

    for number in range(12):
        twins.place(_prompt(number % 3, 1 + number % 7))

    assert twins.placed == 12
    twins.close()


@pytest.mark.parametrize("num_prefillers", [0, 2])
def test_what_a_target_has_in_use_already_counts_where_blocks_run_out(num_prefillers):
    twins = Twins(RouterConfig(priors=PRIORS, transfer=TransferConfig(pull=False)))
    for number in range(num_prefillers):
        twins.register(_plain(f"p{number}", role="prefill"))
    for number in range(3):
        cache = CacheSpec(
            target=f"w{number}", block_size=SIZE, model="m", fingerprint=FINGERPRINTS["m"]
        )
        twins.register(WorkerSpec(cache=cache, total_blocks=15, worker_class="fast"))
    for target, chain, blocks in (("w0", 1, 12), ("w0", 2, 8), ("w1", 1, 12), ("w1", 2, 8)):
        twins.place(_prompt(chain, blocks, pinned=target))
    for _ in range(2):
        twins.place(_prompt(0, 12, pinned="w2"))
    twins.place(_prompt(1, 9, pinned="w2"))  # so that it has most in use
    for number in range(1, 8):
        twins.first_token(number)
    twins.wait(10.0)  # nothing is cached by guess any longer

    with patch.object(kv, "_MOST", 1):
        twins.place(_prompt(0, 12, expected_output_tokens=50))

    (decision,) = twins.at_once.explain(1)
    assert decision.chosen.decode == "w2"
    twins.close()


def _prompt(chain, blocks, **options):
    return Request(
        request_id="",
        chain=b"".join(CHAINS[chain][:blocks]),
        prompt_tokens=blocks * SIZE + 1,
        model="m",
        **options,
    )


@pytest.mark.parametrize(
    ("count", "role", "large"),
    [(31, "prefill", False), (32, "prefill", True), (32, "both", False), (112, "both", True)],
)
def test_pairs_are_calculated_at_once_sooner_than_targets_alone(count, role, large):
    router = KvRouter(HASHERS, RouterConfig(priors=PRIORS))
    for number in range(count):
        cache = CacheSpec(
            target=f"w{number}", block_size=SIZE, model="m", fingerprint=FINGERPRINTS["m"]
        )
        router.register(WorkerSpec(cache=cache, role="both" if number else role))

    able, _ = router.fleet.candidates(_prompt(0, 3), None, 0.0)

    assert (type(able) is Lineup, len(able)) == (large, count)
    router.close()
