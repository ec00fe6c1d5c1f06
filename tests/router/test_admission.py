"""Who waits, who goes next, who is told at once that it is too late."""

from collections import Counter

import pytest

from stafette.router.admission import Admission, AdmissionConfig, AdmissionQueue, Waiting
from stafette.router.errors import InvalidValue, NoCandidate, Rejected
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec
from stafette.router.performance import Performance
from stafette.router.request import Request, WorkerSpec
from stafette.router.router import KvRouter, Placement, RouterConfig

HASHERS = Hashers("key", 10)
SPEED = Performance(step_ms=0.0, prefill_ms_per_token=1.0, prefill_ms_per_pair=0.0)


def waiting(name, tokens=100, tenant="", priority=0, deadline_s=None, arrived=0.0) -> Waiting:
    request = Request(
        request_id=name,
        prompt_tokens=tokens,
        tenant=tenant,
        priority=priority,
        deadline_s=deadline_s,
    )
    return Waiting(request, tokens, arrived)


def queue(*entries: Waiting, **options) -> AdmissionQueue:
    made = AdmissionQueue(AdmissionConfig(**options))
    for entry in entries:
        made.push(entry, ttft_s=0.0, now=entry.arrived)
    return made


def drain(one: AdmissionQueue, now=0.0) -> list[str]:
    return [one.pop(now).request.request_id for _ in range(len(one))]


def test_first_come_is_first_served():
    assert drain(queue(waiting("a"), waiting("b"), waiting("c"))) == ["a", "b", "c"]


def test_higher_priority_goes_first():
    entries = [waiting("low"), waiting("high", priority=2), waiting("mid", priority=1)]

    assert drain(queue(*entries)) == ["high", "mid", "low"]


def test_tenants_get_equal_shares_of_tokens_not_of_requests():
    long = [waiting(f"L{n}", tokens=8_000, tenant="long") for n in range(50)]
    short = [waiting(f"S{n}", tokens=500, tenant="short") for n in range(800)]
    one = queue(*long, *short, quantum_tokens=4_000)

    tokens: Counter[str] = Counter()
    for _ in range(425):
        popped = one.pop(0.0)
        tokens[popped.request.tenant] += popped.tokens

    assert tokens["long"] == pytest.approx(tokens["short"], rel=0.1)


def test_one_tenants_flood_does_not_starve_another():
    flood = [waiting(f"f{n}", tenant="flood") for n in range(1_000)]
    one = queue(*flood, waiting("x", tenant="quiet"), quantum_tokens=500)

    assert "x" in [one.pop(0.0).request.request_id for _ in range(11)]


def test_heavier_tenant_gets_more():
    entries = [waiting(f"{t}{n}", tenant=t) for n in range(400) for t in ("a", "b")]
    one = queue(*entries, quantum_tokens=100, weights={"a": 3.0})

    tenants = Counter(one.pop(0.0).request.tenant for _ in range(400))

    assert tenants["a"] == pytest.approx(3 * tenants["b"], rel=0.05)


def test_idle_tenant_saves_nothing_up():
    one = queue(waiting("a", tenant="t"), quantum_tokens=100)
    one.pop(0.0)
    for n in range(3):
        one.push(waiting(f"b{n}", tokens=100, tenant="u"), 0.0, 0.0)
        one.push(waiting(f"t{n}", tokens=100, tenant="t"), 0.0, 0.0)

    tenants = [one.pop(0.0).request.tenant for _ in range(4)]

    assert Counter(tenants) == {"t": 2, "u": 2}


def test_prompt_larger_than_any_turn_still_goes():
    entries = [waiting("huge", tokens=10**6, tenant="a"), waiting("b", tenant="b")]

    assert sorted(drain(queue(*entries, quantum_tokens=10))) == ["b", "huge"]


def test_full_queue_rejects():
    one = queue(waiting("a"), waiting("b"), max_waiting=2)

    with pytest.raises(Rejected, match="2 requests wait already") as caught:
        one.push(waiting("c"), 0.0, 0.0)

    assert caught.value.retry_after_s == 1.0
    assert (one.rejected, len(one)) == (1, 2)


def test_deadline_that_cannot_be_met_is_told_at_once_and_when_it_could():
    one = queue(*(waiting(str(n), tokens=1_000) for n in range(12)))
    for second in range(1, 3):  # 1,000 tokens a second
        one.pop(float(second))
    assert one.wait_s(priority=0) == pytest.approx(10.0)

    one.push(waiting("in time", deadline_s=11.0, arrived=2.0), ttft_s=0.5, now=2.0)
    with pytest.raises(Rejected, match=r"2\.6 s too late") as caught:
        one.push(waiting("late", deadline_s=8.0, arrived=2.0), ttft_s=0.5, now=2.0)

    assert caught.value.retry_after_s == pytest.approx(2.6)
    one.push(waiting("urgent", deadline_s=1.0, priority=1, arrived=2.0), ttft_s=0.5, now=2.0)


def test_deadline_that_passes_while_waiting_ends_the_wait():
    one = queue(waiting("a", deadline_s=5.0), waiting("b", deadline_s=9.0), waiting("c"))

    late = one.expire(5.0)

    assert [entry.request.request_id for entry in late] == ["a"]
    assert drain(one) == ["b", "c"]
    assert one.expire(1e9) == []


def test_pause_does_not_count_as_slowness():
    one = queue(waiting("a", tokens=1_000), waiting("b", tokens=1_000))
    one.pop(1.0)
    one.pop(2.0)
    one.push(waiting("c", tokens=1_000), 0.0, 1_000.0)
    one.push(waiting("d", tokens=1_000), 0.0, 1_000.0)
    one.pop(1_000.0)

    assert one.wait_s(0) == pytest.approx(1.0)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Time, **options) -> Admission:
    config = RouterConfig(priors={"": SPEED}, expected_output_tokens=10)
    router = KvRouter(HASHERS, config, clock)
    for target in ("a", "b"):
        fingerprint = HASHERS.of("").fingerprint
        cache = CacheSpec(target=target, block_size=10, fingerprint=fingerprint)
        router.register(WorkerSpec(cache=cache))
    made = Admission(router, AdmissionConfig(**options))
    made.router = router
    return made


def request(name, tokens=1_000, **options) -> Request:
    return Request(request_id=name, prompt_tokens=tokens, **options)


def test_requests_wait_until_some_target_is_free_enough():
    clock = Time()
    one = admission(clock, max_target_queue_ms=500.0)
    placed = [one.offer(request(name), clock.now) for name in ("1", "2")]
    assert all(isinstance(placement, Placement) for placement in placed)

    assert one.offer(request("3"), clock.now) is None
    assert one.offer(request("4"), clock.now) is None
    assert one.poll(clock.now) == []

    clock.now = 0.6
    settled = one.poll(clock.now)
    assert [who.request_id for who, _ in settled] == ["3", "4"]
    assert {placement.decode for _, placement in settled} == {"a", "b"}


def test_nobody_overtakes_those_who_wait():
    clock = Time()
    one = admission(clock, max_target_queue_ms=0.0)
    for name in ("1", "2", "3"):
        one.offer(request(name), clock.now)
    clock.now = 5.0

    assert one.offer(request("4"), clock.now) is None
    assert [who.request_id for who, _ in one.poll(clock.now)] == ["3", "4"]


def test_without_a_bound_nothing_waits():
    one = admission(Time())

    placements = [one.offer(request(str(number)), 0.0) for number in range(50)]

    assert None not in placements
    assert len(one.queue) == 0


def test_deadline_that_no_target_can_meet_is_rejected_at_once():
    one = admission(Time())
    for number in range(4):
        one.offer(request(str(number)), 0.0)

    with pytest.raises(Rejected, match="1.0 s too late") as caught:
        one.offer(request("x", deadline_s=2.0), 0.0)

    assert caught.value.retry_after_s == pytest.approx(1.0)
    assert isinstance(one.offer(request("y", deadline_s=3.5), 0.0), Placement)


def test_request_that_waited_too_long_is_told():
    clock = Time()
    one = admission(clock, max_target_queue_ms=0.0)
    for name in ("1", "2"):
        one.offer(request(name, tokens=100_000), clock.now)
    one.offer(request("3", deadline_s=500.0), clock.now)

    clock.now = 600.0
    ((who, answer),) = one.poll(clock.now)

    assert who.request_id == "3"
    assert isinstance(answer, Rejected)
    assert "waited 600.0 s" in str(answer)


def test_request_whose_workers_left_while_it_waited_is_told():
    clock = Time()
    one = admission(clock, max_target_queue_ms=0.0)
    for name in ("1", "2", "3"):
        one.offer(request(name), clock.now)
    for target in ("a", "b"):
        one.router.unregister(target)

    ((who, answer),) = one.poll(clock.now)

    assert (who.request_id, type(answer)) == ("3", NoCandidate)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_target_queue_ms": -1.0}, "admission.max_target_queue_ms"),
        ({"max_waiting": 0}, "admission.max_waiting"),
        ({"quantum_tokens": 0}, "admission.quantum_tokens"),
        ({"weights": {"t": 0.0}}, "admission.weights"),
    ],
)
def test_bad_configuration_names_its_field(options, field):
    with pytest.raises(InvalidValue, match=field):
        AdmissionConfig(**options)
