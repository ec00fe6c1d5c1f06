"""The policies behind one contract, and how one option is picked of many."""

from collections import Counter

import pytest

from stafette.router.cost import CostConfig, Terms
from stafette.router.errors import InvalidValue
from stafette.router.index import CacheSpec, Overlap
from stafette.router.load import LoadView
from stafette.router.performance import Performance
from stafette.router.policies.dynamo import DynamoConfig, DynamoPolicy
from stafette.router.policy import PickConfig, pick
from stafette.router.registry import NAMES, PolicyConfig, make_policy
from stafette.router.request import Candidate, Option, Request, WorkerSpec
from stafette.router.transfer_cost import TransferConfig


def terms() -> Terms:
    return Terms(16, 100, 0.0, (), CostConfig(), TransferConfig(pull=False), {})


def one(target, role="both", overlap=0, host=0, shared=0, **load) -> Candidate:
    spec = WorkerSpec(cache=CacheSpec(target=target, block_size=16), role=role)
    kept = Overlap(device=overlap, host=host)
    return Candidate(spec, kept, LoadView(**load), Performance(), shared)


def request(number=0, tokens=163, **options) -> Request:
    chain = options.pop("chain", b"")
    return Request(request_id=f"r{number}", prompt_tokens=tokens, chain=chain, **options)


def chosen(name, decoders, requests, prefillers=(), **options) -> list[str]:
    policy = make_policy(PolicyConfig(name=name, **options))
    found = [policy.options(each, prefillers, decoders, terms())[0] for each in requests]
    return [option.decode for option in found]


def option(target, cost) -> Option:
    return Option(target, None, cost, (), ())


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_prices_every_candidate_it_names_and_sorts_them(name):
    policy = make_policy(PolicyConfig(name=name))
    decoders = [one("a"), one("b"), one("c")]

    found = policy.options(request(), [], decoders, terms())

    costs = [option.cost for option in found]
    assert costs == sorted(costs)
    assert {option.decode for option in found} == {"a", "b", "c"}
    assert all(option.prefill is None for option in found)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_can_split_a_request_over_a_disaggregated_fleet(name):
    policy = make_policy(PolicyConfig(name=name))
    busy = one("d", "decode", running=200, waiting=0)

    found = policy.options(request(tokens=100_000), [one("p", "prefill")], [busy], terms())

    assert (found[0].prefill, found[0].decode) == ("p", "d")


def test_kv_goes_where_the_prefix_is_and_not_where_the_queue_is_longer_than_it_saves():
    holder = one("holder", overlap=500)
    busy = one("holder", overlap=500, queue_ms=500.0)
    prompt = request(tokens=8_192)

    assert chosen("kv", [one("a"), holder], [prompt]) == ["holder"]
    assert chosen("kv", [one("a"), busy], [prompt]) == ["a"]


def test_round_robin_takes_all_in_turn_also_when_some_come_and_go():
    policy = make_policy(PolicyConfig(name="round_robin"))
    fleet = [one("a"), one("b"), one("c")]

    def turn(group):
        return policy.options(request(), [], group, terms())[0].decode

    assert [turn(fleet) for _ in range(4)] == ["a", "b", "c", "a"]
    assert turn([fleet[0], fleet[2]]) == "c"
    assert turn(fleet) == "a"


def test_round_robin_takes_each_half_of_a_disaggregated_fleet_in_its_own_turn():
    policy = make_policy(PolicyConfig(name="round_robin"))
    prefillers, decoders = [one(f"p{n}") for n in range(3)], [one(f"d{n}") for n in range(4)]

    best = [policy.options(request(n), prefillers, decoders, terms())[0] for n in range(12)]

    assert [option.prefill for option in best] == ["p0", "p1", "p2"] * 4
    assert [option.decode for option in best] == ["d0", "d1", "d2", "d3"] * 3


def test_power_of_two_names_two_of_each_half():
    policy = make_policy(PolicyConfig(name="power_of_two"))
    prefillers, decoders = [one(f"p{n}") for n in range(3)], [one(f"d{n}") for n in range(4)]

    for number in range(50):
        options = policy.options(request(number), prefillers, decoders, terms())
        assert sum(option.cost < float("inf") for option in options) == 2


def test_random_spreads_requests_and_is_the_same_for_one_request():
    fleet = [one(name) for name in "abcd"]
    requests = [request(number) for number in range(4_000)]

    targets = chosen("random", fleet, requests)

    assert targets == chosen("random", fleet[::-1], requests)
    assert min(Counter(targets).values()) > 900


def test_least_loaded_counts_requests():
    fleet = [one("a", running=3), one("b", waiting=1, running=1), one("c", waiting=3)]

    assert chosen("least_loaded", fleet, [request()]) == ["b"]


def test_power_of_two_never_takes_the_more_loaded_of_its_two():
    fleet = [one(name, running=load) for load, name in enumerate("abcde")]

    targets = Counter(chosen("power_of_two", fleet, [request(n) for n in range(2_000)]))

    assert "e" not in targets
    assert targets["a"] > targets["b"] > targets["c"] > targets["d"] > 0


def test_session_stays_and_only_those_of_a_lost_target_move():
    fleet = [one(name) for name in "abcd"]
    requests = [request(n, session=f"s{n % 100}") for n in range(200)]

    before = chosen("session", fleet, requests)
    after = chosen("session", fleet[:3], requests)

    assert before[:100] == before[100:]
    assert all(old in (new, "d") for old, new in zip(before, after, strict=True))
    assert len(set(before)) == 4


def test_prompts_that_begin_alike_go_together_without_events():
    fleet = [one(name) for name in "abcd"]
    beginnings = [bytes([n]) * 256 for n in range(50)]

    first = chosen("prefix_affinity", fleet, [request(chain=b + b"x" * 16) for b in beginnings])
    second = chosen("prefix_affinity", fleet, [request(chain=b + b"y" * 64) for b in beginnings])

    assert first == second
    assert len(set(first)) == 4


def test_prefix_affinity_leaves_a_crowded_target():
    prompt = request(chain=b"z" * 256)
    fleet = [one(name) for name in "abcd"]
    (usual,) = chosen("prefix_affinity", fleet, [prompt])
    crowded = [one(name, running=10 if name == usual else 1) for name in "abcd"]

    assert chosen("prefix_affinity", crowded, [prompt]) != [usual]


def test_dynamo_cost_is_that_of_dynamo():
    """163 tokens, 4 blocks on the device and 4 on the host: Dynamo 1.6.1 itself logs 13.1875."""
    prompt = request(chain=bytes(10 * 16))  # its full blocks

    (found,) = DynamoPolicy(DynamoConfig()).options(
        prompt, [], [one("w", overlap=4, host=4)], terms()
    )

    assert found.cost == 13.1875


def test_dynamo_weights_its_parts():
    config = DynamoConfig(
        overlap_score_credit=2, prefill_load_scale=4, decode_active_request_weight=3
    )
    worker = one("w", overlap=3, shared=4, used_blocks=20, charged_tokens=160, running=1, waiting=1)
    prompt = request(tokens=160, chain=bytes(10 * 16))

    (found,) = DynamoPolicy(config).options(prompt, [], [worker], terms())

    assert found.cost == 4 * (20 - 6) + (20 + 10 - 4) + 3 * 2


def test_cheapest_option_is_picked():
    assert pick([option("a", 1.0), option("b", 9.0)], "r", PickConfig()).decode == "a"


def test_equal_options_share_the_requests_the_same_way_everywhere():
    options = [option(name, 7.0) for name in "abc"]

    picked = [pick(options, f"r{n}", PickConfig()).decode for n in range(3_000)]

    assert min(Counter(picked).values()) > 900
    assert picked == [pick(options, f"r{n}", PickConfig()).decode for n in range(3_000)]


def test_costs_that_are_nearly_equal_are_equal():
    options = [option("a", 1.0), option("b", 1.4), option("c", 2.0)]

    picked = {pick(options, f"r{n}", PickConfig(tie_ms=0.5)).decode for n in range(100)}

    assert picked == {"a", "b"}


def test_temperature_spreads_by_cost():
    options = [option("a", 0.0), option("b", 50.0), option("c", 100.0)]

    picked = Counter(
        pick(options, f"r{n}", PickConfig(temperature=1.0)).decode for n in range(9_000)
    )

    # exp(0) : exp(-1/2) : exp(-1)
    assert picked["b"] / picked["a"] == pytest.approx(0.607, abs=0.06)
    assert picked["c"] / picked["a"] == pytest.approx(0.368, abs=0.05)


def test_temperature_of_equal_costs_takes_all():
    options = [option(name, 7.0) for name in "abc"]

    picked = {pick(options, f"r{n}", PickConfig(temperature=0.5)).decode for n in range(100)}

    assert picked == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: PolicyConfig(name="best"), "policy.name = 'best'"),
        (lambda: PolicyConfig(prefix_blocks=0), "policy.prefix_blocks"),
        (lambda: PolicyConfig(crowd_factor=0.5), "policy.crowd_factor"),
        (lambda: DynamoConfig(prefill_load_scale=-1), "dynamo.prefill_load_scale"),
        (lambda: PickConfig(temperature=-1), "pick.temperature"),
    ],
)
def test_bad_configuration_names_its_field(make, field):
    with pytest.raises(InvalidValue, match=field):
        make()
