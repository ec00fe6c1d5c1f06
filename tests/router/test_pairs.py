"""Prefill and decode are chosen together: beside a search through all pairs."""

import random

import pytest

from stafette.router import pairs
from stafette.router.cost import CostConfig, Terms
from stafette.router.index import CacheSpec, Overlap
from stafette.router.load import LoadView
from stafette.router.performance import Performance
from stafette.router.request import Candidate, Request, WorkerSpec
from stafette.router.transfer_cost import TransferConfig

SPEED = Performance(
    step_ms=0.0,
    prefill_ms_per_token=1.0,
    prefill_ms_per_pair=0.0,
    decode_ms_per_seq=0.1,
    decode_ms_per_kv_token=0.0,
    max_num_batched_tokens=1_000,
    prefill_stalls_decode=1.0,
)
REQUEST = Request(request_id="r", prompt_tokens=1_000, expected_output_tokens=100)
NETWORK = TransferConfig(far_gb_s=1.0, same_host_gb_s=10.0, far_ms=2.0, same_host_ms=0.0)
MB = 1_000_000


def one(target, overlap=0, **options) -> Candidate:
    load = LoadView(**{k: options.pop(k) for k in ("queue_ms", "running") if k in options})
    cache = CacheSpec(target=target, block_size=10)
    spec = WorkerSpec(cache=cache, block_bytes=MB, **options)
    return Candidate(spec, Overlap(device=overlap), load, SPEED)


def terms(*sources, crowd=0.0, network=NETWORK) -> Terms:
    held = [(one.overlap.total, one) for one in sources]
    return Terms(10, 100, crowd, held, CostConfig(), network, {})


def best(prefillers, decoders, about=None):
    return pairs.options(REQUEST, prefillers, decoders, about or terms(), 8)[0]


def test_busy_decoder_has_its_prompt_computed_elsewhere():
    option = best([one("p")], [one("d", running=10)])

    assert (option.prefill, option.decode) == ("p", "d")
    assert option.ttft_ms == 1_000 + 2 + 100
    assert option.terms["transfer"] == 102.0


def test_short_rest_of_a_prompt_is_computed_where_it_is_decoded():
    option = best([one("p")], [one("d", overlap=99, running=10)])

    assert (option.prefill, option.decode) == (None, "d")


def test_only_blocks_that_the_decoder_lacks_are_transferred():
    option = best([one("p", overlap=90)], [one("d", overlap=60, running=50)])

    assert option.prefill == "p"
    assert option.terms["transfer"] == 2 + 40
    assert option.terms["prefill"] == 100


def test_transfer_hides_behind_the_computation_of_later_chunks():
    long = Request(request_id="r", prompt_tokens=4_000, expected_output_tokens=100)

    (_, option) = pairs.options(long, [one("p")], [one("d")], terms(), 1)

    # 402 ms of transfer while 3 of 4 chunks are computed: the last chunk's share is left.
    assert option.terms["transfer"] == pytest.approx(402 / 4)


def test_prefill_worker_on_the_same_host_is_worth_a_little_wait():
    near = one("near", queue_ms=80.0, host="h")
    decoder = one("d", running=10, host="h")

    assert best([one("far"), near], [decoder]).prefill == "near"
    assert best([one("far"), one("near", queue_ms=95.0, host="h")], [decoder]).prefill == "far"


def test_prompt_is_pulled_from_a_third_target_and_computed_by_the_second():
    holder = one("holder", overlap=90, queue_ms=9_000.0)

    option = best([one("p")], [one("d", running=50)], terms(holder))

    assert option.prefill == "p"
    assert (option.source.target, option.source.blocks) == ("holder", 90)
    assert option.cached_tokens == 900


def test_without_prefill_workers_everything_is_local():
    found = pairs.options(REQUEST, [], [one("a"), one("b", overlap=50)], terms(), 8)

    assert [(option.prefill, option.decode) for option in found] == [(None, "b"), (None, "a")]


def test_cheapest_pair_is_found_as_if_all_had_been_tried():
    rng = random.Random(0)
    for _ in range(150):
        hosts = [f"h{number}" for number in range(3)]

        def worker(name, rng=rng, hosts=hosts):
            return one(
                name,
                overlap=rng.choice([0, 0, 30, 80]),
                queue_ms=rng.uniform(0, 800),
                running=rng.randrange(30),
                host=rng.choice(hosts),
            )

        prefillers = [worker(f"p{number}") for number in range(rng.randrange(1, 9))]
        decoders = [worker(f"d{number}") for number in range(rng.randrange(1, 9))]
        about = terms(*sorted(prefillers, key=lambda p: -p.overlap.total)[:3], crowd=0.5)

        found = pairs.options(REQUEST, prefillers, decoders, about, 3)
        everything = pairs.options(REQUEST, prefillers, decoders, about, 10_000)

        assert len(everything) == len(decoders) * (1 + len(prefillers))
        local = [o.cost for o in everything if not o.prefill][:3]
        assert [o.cost for o in found if not o.prefill] == pytest.approx(local)
        assert found[0].cost == pytest.approx(everything[0].cost)
        remote = [o.cost for o in everything if o.prefill][:3]
        assert [o.cost for o in found if o.prefill] == pytest.approx(remote)


def test_terms_add_up_to_the_cost_and_own_ones_to_the_first_token():
    option = best([one("p", queue_ms=5.0)], [one("d", running=10)], terms(crowd=0.1))

    assert sum(option.terms.values()) == pytest.approx(option.cost)
    others = sum(option.terms[name] for name in ("crowd", "stall", "decode"))
    assert option.ttft_ms == pytest.approx(option.cost - others)
