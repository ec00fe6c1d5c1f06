"""Routers that tell each other of their reservations: lost messages, repeats, lost routers."""

import random
from collections import Counter

import pytest

from stafette.kvtransfer.errors import MalformedMessage
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec
from stafette.router.load import Stay
from stafette.router.request import Request, WorkerSpec
from stafette.router.reservations import Computed, Freed, Reserved, Summary, decode, encode
from stafette.router.router import KvRouter
from stafette.router.sharing import Sharing

HASHERS = Hashers("key", 10)
RESERVED = Reserved("r", (("a", Stay(30, 20, 20.5, bytes(48), computes=True)),))


def make_router(publish=None) -> KvRouter:
    router = KvRouter(HASHERS, clock=lambda: 0.0, sharing=Sharing(publish))
    for target in ("a", "b"):
        fingerprint = HASHERS.of("").fingerprint
        cache = CacheSpec(target=target, block_size=10, fingerprint=fingerprint)
        router.register(WorkerSpec(cache=cache))
    return router


def request(name="r", tokens=1_000) -> Request:
    return Request(request_id=name, prompt_tokens=tokens)


def books(router) -> dict[str, list[str]]:
    return {target: sorted(m.load.request_ids) for target, m in router.fleet.members.items()}


def test_other_routers_book_what_one_does():
    other = make_router()
    router = make_router(publish=lambda change: other.apply("one", change))

    target = router.place(request()).decode
    view = other.fleet[target].load.view(0.0)
    assert view.queue_ms == router.fleet[target].load.view(0.0).queue_ms > 0
    assert books(other)[target] == ["one/r"]

    router.first_token("r")
    assert other.fleet[target].load.view(0.0).running == 1
    router.free("r")
    assert books(other) == {"a": [], "b": []}
    assert other.sharing.counters.applied == 3


def test_two_routers_that_share_do_not_send_everything_to_one_target():
    other = make_router()
    router = make_router(publish=lambda change: other.apply("one", change))

    first = router.place(request("same")).decode
    second = other.place(request("same")).decode  # chance alone would choose the same

    assert second != first


def test_siblings_stay_together_across_routers():
    other = make_router()
    router = make_router(publish=lambda change: other.apply("one", change))
    chain = bytes(range(200)) * 8  # 100 blocks
    first = router.place(Request(request_id="1", prompt_tokens=1_000, chain=chain)).decode
    router.free("1")

    placement = other.place(Request(request_id="2", prompt_tokens=1_000, chain=chain))

    assert (placement.decode, placement.cached_tokens) == (first, 999)


def test_change_survives_the_wire():
    pair = Reserved("r", (("d", Stay(30, 20, 0.0, b"", computes=False)), *RESERVED.stays))
    for change in (
        RESERVED,
        pair,
        Computed("r"),
        Freed("r"),
        Summary((RESERVED, pair), frozenset({"r"})),
        Summary((), frozenset()),
    ):
        assert decode(encode("one", change)) == ("one", change)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode("one", RESERVED)[:-1],
        b"\x93\xa3one\xa7computed\x01",
        b"\x93\xa3one\xa5other\xa1r",
        b"\x92\x01\xa1r",
    ],
)
def test_what_is_no_change_is_refused(data):
    with pytest.raises(MalformedMessage):
        decode(data)


def test_broken_bytes_are_refused_and_never_crash():
    rng = random.Random(0)
    whole = encode("one", Summary((RESERVED,), frozenset({"r"})))
    for _ in range(3_000):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            decode(bytes(broken))
        except MalformedMessage:
            pass


def test_repeated_and_unknown_changes_are_counted_and_change_nothing():
    router = make_router()
    for change in (RESERVED, RESERVED, Computed("x"), Freed("x")):
        router.apply("one", change)

    counters = router.sharing.counters
    assert (counters.applied, counters.repeated, counters.unknown) == (1, 1, 2)
    assert books(router) == {"a": ["one/r"], "b": []}


def test_summary_makes_lost_messages_good():
    sent = []
    router, other = make_router(publish=sent.append), make_router()
    rng = random.Random(1)
    alive = []
    for number in range(300):
        if rng.random() < 0.5 or not alive:
            alive.append(router.place(request(str(number))).request_id)
        elif rng.random() < 0.5:
            router.first_token(rng.choice(alive))
        else:
            router.free(alive.pop(rng.randrange(len(alive))))
    for change in sent:
        if rng.random() < 0.6:
            other.apply("one", change)

    other.apply("one", router.sharing.summary())

    named = {target: sorted(f"one/{name}" for name in ids) for target, ids in books(router).items()}
    assert books(other) == named
    for target in ("a", "b"):
        ours, theirs = (each.fleet[target].load.view(0.0) for each in (router, other))
        assert (ours.waiting, ours.running) == (theirs.waiting, theirs.running)
        assert ours.queue_ms == pytest.approx(theirs.queue_ms)


def test_lost_router_takes_its_reservations_along():
    router = make_router()
    router.apply("one", RESERVED)
    router.apply("two", RESERVED)

    router.forget_router("one")
    router.forget_router("nobody")

    assert books(router) == {"a": ["two/r"], "b": []}


def test_reservation_on_a_target_that_is_not_here_is_kept_until_it_ends():
    router = make_router()
    router.apply("one", Reserved("r", (("elsewhere", RESERVED.stays[0][1]),)))

    router.apply("one", Computed("r"))
    router.apply("one", Freed("r"))

    assert router.sharing.counters.applied == 3


def test_without_sharing_routers_still_spread_equal_choices():
    routers = [make_router() for _ in range(4)]

    targets = Counter(
        router.select(request(f"{number}-{n}")).decode
        for number, router in enumerate(routers)
        for n in range(100)
    )

    assert min(targets.values()) > 150
