"""What a request costs on a target, in milliseconds that can be summed in the head."""

import pytest

from stafette.router.cost import CostConfig, Terms, crowding, options_on, prompt_on
from stafette.router.errors import InvalidValue
from stafette.router.index import NOTHING, CacheSpec, Overlap
from stafette.router.load import IDLE, LoadView
from stafette.router.performance import Performance
from stafette.router.request import Candidate, Request, WorkerSpec
from stafette.router.transfer_cost import TransferConfig, tier_ms, transfer_ms

SPEED = Performance(
    step_ms=0.0,
    prefill_ms_per_token=1.0,
    prefill_ms_per_pair=0.0,
    decode_ms_per_seq=0.5,
    decode_ms_per_kv_token=0.001,
    prefill_stalls_decode=0.5,
)
REQUEST = Request(request_id="r", prompt_tokens=100, chain=bytes(160), expected_output_tokens=20)
MB = 1_000_000


def spec(target="w", **options) -> WorkerSpec:
    cache = CacheSpec(target=target, block_size=10)
    return WorkerSpec(cache=cache, **({"block_bytes": MB} | options))


def candidate(target="w", overlap=NOTHING, load=IDLE, shared=0, **options) -> Candidate:
    return Candidate(spec(target, **options), overlap, load, SPEED, shared)


def terms(*sources, crowd=0.0, transfer=None, **cost) -> Terms:
    transfer = transfer or TransferConfig(pull=bool(sources))
    held = [(one.overlap.total, one) for one in sources]
    return Terms(10, 20, crowd, held, CostConfig(**cost), transfer, {})


def cost_terms(one: Candidate, about: Terms) -> dict[str, float]:
    (option,) = options_on(REQUEST, [one], about)
    assert option.cost == pytest.approx(sum(option.terms.values()))
    return {name: value for name, value in option.terms.items() if value}


def test_idle_target_costs_the_uncached_tokens():
    (option,) = options_on(REQUEST, [candidate(overlap=Overlap(device=4))], terms())

    assert option.cost == option.ttft_ms == 60.0
    assert option.cached_tokens == 40


def test_last_token_is_computed_even_when_everything_is_cached():
    (option,) = options_on(REQUEST, [candidate(overlap=Overlap(device=10))], terms())

    assert (option.cached_tokens, option.cost) == (99, 1.0)


def test_request_waits_for_the_queue():
    assert cost_terms(candidate(load=LoadView(queue_ms=30.0)), terms()) == {
        "queue": 30.0,
        "prefill": 100.0,
    }


def test_those_who_come_later_wait_for_its_prompt():
    assert cost_terms(candidate(), terms(crowd=1.5))["crowd"] == 150.0


def test_those_who_decode_there_wait_for_its_prompt_and_have_longer_steps():
    found = cost_terms(candidate(load=LoadView(running=4)), terms())

    assert found["stall"] == 4 * 100 * 0.5
    # Each of 20 steps is longer by 0.5 and 0.001 for each of 110 tokens.
    assert found["decode"] == pytest.approx(4 * 20 * (0.5 + 0.11))


def test_those_who_wait_there_for_prompts_decode_by_then_unless_that_is_done_elsewhere():
    ahead = LoadView(waiting=3, running=1)

    both = cost_terms(candidate(load=ahead), terms())
    prefill = cost_terms(candidate(load=ahead, role="prefill"), terms())

    assert both["stall"] == 4 * 100 * 0.5
    assert both["decode"] == pytest.approx(4 * 20 * (0.5 + 0.11))
    assert prefill["stall"] == 1 * 100 * 0.5


def test_others_count_as_much_as_is_configured():
    found = cost_terms(candidate(load=LoadView(running=4)), terms(decode_weight=0.0))

    assert found == {"prefill": 100.0}


def test_target_without_free_blocks_costs_the_wait_for_them():
    full = LoadView(running=2, used_blocks=20, kv_tokens=200)
    roomy = candidate(load=full, total_blocks=32)
    tight = candidate(load=full, total_blocks=26)

    assert "room" not in cost_terms(roomy, terms())
    # 12 blocks more are 6 too many; 20 come free in 20 steps of 2 * 0.5 + 200 * 0.001 ms.
    assert cost_terms(tight, terms())["room"] == pytest.approx(6 / 20 * 20 * 1.2)
    shares = candidate(load=full, total_blocks=26, shared=6)
    assert "room" not in cost_terms(shares, terms())


def test_blocks_on_the_host_are_loaded_when_that_is_faster_than_computing():
    one = candidate(overlap=Overlap(device=2, host=5))

    found = cost_terms(one, terms(transfer=TransferConfig(host_tier_gb_s=1.0, pull=False)))

    assert found == {"load": 5.0, "prefill": 30.0}


def test_blocks_on_a_slow_disk_are_computed_instead():
    one = candidate(overlap=Overlap(device=2, host=3, disk=5))
    slow = TransferConfig(host_tier_gb_s=1.0, disk_tier_gb_s=0.01, pull=False)

    assert cost_terms(one, terms(transfer=slow)) == {"load": 3.0, "prefill": 50.0}


def test_blocks_of_another_target_are_pulled_when_that_is_faster_than_computing():
    other = candidate("s", overlap=Overlap(device=8))
    network = TransferConfig(far_gb_s=0.5, far_ms=4.0)

    prompt = prompt_on(
        REQUEST, candidate(overlap=Overlap(device=2)), terms(other, transfer=network)
    )

    assert (prompt.pull_ms, prompt.prefill_ms) == (4.0 + 12.0, 20.0)
    assert (prompt.source.target, prompt.source.first, prompt.source.blocks) == ("s", 2, 6)


def test_slow_network_pulls_nothing():
    other = candidate("s", overlap=Overlap(device=8))
    network = TransferConfig(far_gb_s=0.05, far_ms=4.0)

    prompt = prompt_on(REQUEST, candidate(), terms(other, transfer=network))

    assert (prompt.source, prompt.ms) == (None, 100.0)


def test_nearer_source_is_better_than_one_with_a_little_more():
    far = candidate("far", overlap=Overlap(device=8))
    near = candidate("near", overlap=Overlap(device=7), host="h")
    network = TransferConfig(far_gb_s=0.2, same_host_gb_s=10.0)

    prompt = prompt_on(REQUEST, candidate(host="h"), terms(far, near, transfer=network))

    assert prompt.source.target == "near"


def test_no_target_pulls_from_itself_or_from_who_has_less():
    one = candidate("a", overlap=Overlap(device=5))
    less = candidate("b", overlap=Overlap(device=5))

    assert prompt_on(REQUEST, one, terms(one, less)).source is None
    slow = candidate("a", overlap=Overlap(device=2, disk=5))
    network = TransferConfig(disk_tier_gb_s=0.001)
    assert prompt_on(REQUEST, slow, terms(slow, transfer=network)).source is None


def test_same_host_is_before_same_rack_before_far():
    here, rack, far = spec(host="h", rack="r"), spec(host="i", rack="r"), spec(host="j", rack="s")
    config = TransferConfig()

    times = [transfer_ms(here, other, 10, config) for other in (here, rack, far)]

    assert times == sorted(times)
    assert times == [0.2 + 10 / 20, 0.5 + 10 / 10, 2.0 + 10 / 2]
    assert transfer_ms(here, far, 0, config) == 0.0


def test_unnamed_hosts_are_not_the_same_host():
    assert transfer_ms(spec(), spec(), 10, TransferConfig()) == 7.0


def test_tiers_have_their_own_speed():
    config = TransferConfig(host_tier_gb_s=10, disk_tier_gb_s=1, peer_tier_gb_s=2)

    assert tier_ms((10, 1, 4), MB, config) == pytest.approx(1 + 1 + 2)


def test_crowding_grows_with_utilization_up_to_its_limit():
    def mean(*shares):
        return crowding(shares, CostConfig(crowd_limit=0.9))

    assert mean(0.0) == 0.0
    assert mean(0.25, 0.75) == pytest.approx(1.0)
    assert mean(1.0) == pytest.approx(9.0)
    assert crowding([], CostConfig()) == 0.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: CostConfig(crowd_limit=1.0), "cost.crowd_limit"),
        (lambda: CostConfig(decode_weight=-1), "cost.decode_weight"),
        (lambda: TransferConfig(far_gb_s=0), "transfer.far_gb_s"),
        (lambda: TransferConfig(far_ms=-1), "transfer.far_ms"),
        (lambda: Request(request_id="r", prompt_tokens=0), "prompt_tokens"),
        (lambda: Request(request_id="r", prompt_tokens=1, deadline_s=0), "deadline_s"),
        (lambda: spec(role="cook"), "role"),
        (lambda: spec(total_blocks=-1), "total_blocks"),
    ],
)
def test_bad_value_is_refused_by_name(make, field):
    with pytest.raises(InvalidValue, match=field):
        make()
