"""The router as its users see it: from a request to a placement, and the books until the end."""

import pytest

from stafette.kvtransfer.events import BlockRemoved, BlockStored, EventBatch
from stafette.router.affinity import AffinityConfig
from stafette.router.errors import (
    IncompatibleCache,
    InvalidValue,
    NoCandidate,
    UnknownReservation,
    UnknownTarget,
)
from stafette.router.explain import ExplainConfig
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec
from stafette.router.load import LoadReport
from stafette.router.performance import Performance, StepReport
from stafette.router.registry import PolicyConfig
from stafette.router.request import Request, WorkerSpec
from stafette.router.router import KvRouter, RouterConfig
from stafette.router.transfer_cost import TransferConfig

SIZE = 10
HASHERS = Hashers("key", SIZE)
HASHER = HASHERS.of("m")
SPEED = Performance(
    step_ms=0.0, prefill_ms_per_token=1.0, prefill_ms_per_pair=0.0, decode_ms_per_seq=0.1
)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def hashes(num_blocks: int, first_token: int = 1) -> tuple[bytes, ...]:
    return tuple(HASHER.hash_blocks([first_token, *range(1, num_blocks * SIZE)]))


def request(name="r", tokens=200, first_token=1, **options) -> Request:
    chain = b"".join(hashes(tokens // SIZE, first_token))
    defaults = {"model": "m", "expected_output_tokens": 10}
    return Request(request_id=name, chain=chain, prompt_tokens=tokens, **(defaults | options))


def worker(target, **options) -> WorkerSpec:
    cache = CacheSpec(target=target, block_size=SIZE, model="m", fingerprint=HASHER.fingerprint)
    return WorkerSpec(cache=cache, **options)


def make_router(*specs, clock=None, **options) -> KvRouter:
    defaults = {"priors": {"": SPEED}, "transfer": TransferConfig(pull=False)}
    router = KvRouter(HASHERS, RouterConfig(**(defaults | options)), clock or Time())
    for spec in specs:
        router.register(spec if isinstance(spec, WorkerSpec) else worker(spec))
    return router


def store(router, target, num_blocks, first_token=1, seq=1):
    event = BlockStored(None, hashes(num_blocks, first_token))
    router.index.on_batch(EventBatch(target, 1, seq, 0.0, (event,)))


def test_request_goes_where_its_prefix_is():
    router = make_router("a", "b", "c")
    store(router, "b", 12)

    placement = router.place(request())

    assert (placement.decode, placement.prefill, placement.source) == ("b", None, None)
    assert (placement.cached_tokens, placement.ttft_ms) == (120, 80.0)


def test_second_request_of_a_burst_follows_the_first_before_any_event():
    router = make_router("a", "b", "c", "d")
    first = router.place(request("1", tokens=2_000))
    router.first_token("1")

    second = router.place(request("2", tokens=2_000))

    assert second.decode == first.decode
    assert second.cached_tokens == 1_999


def test_queue_that_is_longer_than_the_prefix_saves_sends_the_request_elsewhere():
    router = make_router("a", "b")
    store(router, "a", 12)
    router.place(request("other", tokens=500, first_token=7, pinned="a"))

    placement = router.place(request())

    assert (placement.decode, placement.ttft_ms) == ("b", 200.0)


def test_different_prompts_spread_over_idle_targets():
    router = make_router("a", "b", "c", "d")

    targets = {router.place(request(str(n), first_token=100 + n)).decode for n in range(4)}

    assert targets == {"a", "b", "c", "d"}


def test_books_follow_a_request_to_its_end():
    clock = Time()
    router = make_router("a", clock=clock)
    router.place(request())
    load = router.fleet["a"].load
    assert load.view(0.0).waiting == 1

    clock.now = 0.2
    router.first_token("r", cached_tokens=0, ttft_ms=200.0)
    router.progress("r", 25)
    view = load.view(0.2)
    assert (view.waiting, view.running, view.used_blocks) == (0, 1, 20 + 3)

    router.free("r", output_tokens=25)
    assert load.view(0.2).used_blocks == 0
    with pytest.raises(UnknownReservation, match="no request r"):
        router.free("r")


def test_select_books_nothing():
    router = make_router("a")

    router.select(request())
    router.select(request())

    assert router.fleet["a"].load.request_ids == []
    assert router.decisions.counters.decisions == 2


def test_preview_leaves_no_trace():
    router = make_router("a")

    assert router.preview(request()).decode == "a"

    assert (len(router.decisions), router.fleet["a"].load.request_ids) == (0, [])


def test_placing_a_request_twice_is_an_error():
    router = make_router("a")
    router.place(request())

    with pytest.raises(InvalidValue, match="is placed already"):
        router.place(request())

    router.free("r")
    router.place(request())


def test_without_workers_the_error_says_so():
    with pytest.raises(NoCandidate, match="no worker is registered"):
        make_router().place(request())


def test_when_all_are_filtered_out_the_error_says_by_which_filter():
    router = make_router("a", worker("b", taints=frozenset({"old"})), "c")
    router.set_state("a", healthy=False)
    router.set_state("c", draining=True)

    with pytest.raises(NoCandidate) as caught:
        router.place(request())

    assert caught.value.reasons == {
        "a": "is not healthy",
        "b": "is tainted: old",
        "c": "is draining",
    }
    assert "b: is tainted: old" in str(caught.value)
    assert router.decisions.counters.rejected == 1
    router.set_state("a")
    assert router.place(request()).decode == "a"


def test_incompatible_worker_is_refused_and_leaves_nothing():
    router = make_router()
    cache = CacheSpec(target="a", block_size=16, model="m")

    with pytest.raises(IncompatibleCache):
        router.register(WorkerSpec(cache=cache))

    assert (router.index.targets, router.fleet.members) == ([], {})


def test_target_that_leaves_takes_its_requests_along_and_their_end_is_no_error():
    router = make_router("a", "b")
    router.place(request(pinned="a"))

    router.unregister("a")

    assert router.place(request("2")).decode == "b"
    router.first_token("r")
    router.progress("r", 5)
    router.free("r")
    with pytest.raises(UnknownTarget):
        router.unregister("a")


def test_target_that_registers_again_begins_with_empty_books():
    router = make_router("a")
    router.place(request())

    router.register(worker("a"))

    assert router.fleet["a"].load.request_ids == []
    router.free("r")


def test_disaggregated_request_is_booked_on_both_targets_and_moves_between_them():
    router = make_router(worker("p", role="prefill"), worker("d", role="decode"))
    for number in range(5):
        router.place(request(f"busy{number}", tokens=20, first_token=50 + number, pinned="d"))
        router.first_token(f"busy{number}")

    placement = router.place(request(tokens=2_000))

    assert (placement.prefill, placement.decode) == ("p", "d")
    prefiller, decoder = (router.fleet[target].load for target in ("p", "d"))
    assert prefiller.view(0.0).queue_ms == 2_000.0
    assert decoder.view(0.0).queue_ms == 0.0
    assert decoder.view(0.0).waiting == 1
    router.first_token("r")
    assert prefiller.request_ids == []
    assert decoder.view(0.0).running == 6
    router.free("r")
    assert decoder.view(0.0).running == 5


def test_disaggregated_request_that_is_given_up_leaves_both_targets():
    router = make_router(worker("p", role="prefill"), worker("d", role="decode"))
    for number in range(5):
        router.place(request(f"busy{number}", tokens=20, first_token=50 + number, pinned="d"))
        router.first_token(f"busy{number}")
    router.place(request(tokens=2_000))

    router.free("r")

    assert router.fleet["p"].load.request_ids == []
    assert router.fleet["d"].load.view(0.0).waiting == 0


def test_role_can_change_while_requests_run():
    router = make_router(worker("a", role="decode"), worker("b", role="decode"))
    router.place(request("1", pinned="a"))

    router.set_role("b", "prefill")
    for number in range(5):
        router.place(request(f"busy{number}", tokens=20, first_token=50 + number))
        router.first_token(f"busy{number}")

    placement = router.place(request("2", tokens=2_000, first_token=9))
    assert (placement.prefill, placement.decode) == ("b", "a")
    assert "1" in router.fleet["a"].load.request_ids


def test_blocks_of_a_busy_target_are_pulled():
    network = TransferConfig(pull=True, same_rack_gb_s=100.0, same_rack_ms=1.0)
    specs = [worker(name, rack="r", block_bytes=1_000_000) for name in ("a", "b")]
    router = make_router(*specs, transfer=network)
    store(router, "a", 15)
    router.place(request("other", tokens=500, first_token=7, pinned="a"))

    placement = router.place(request())

    assert placement.decode == "b"
    assert (placement.source.target, placement.source.blocks) == ("a", 15)
    assert placement.cached_tokens == 150
    assert placement.ttft_ms == pytest.approx(50 + 1 + 0.15)


def test_hard_session_stays_however_long_the_queue():
    router = make_router("a", "b", affinity=AffinityConfig(mode="hard"))
    first = router.place(request("1", session="s")).decode
    router.place(request("other", tokens=5_000, first_token=7, pinned=first))

    assert router.place(request("2", session="s")).decode == first
    router.unregister(first)
    assert router.place(request("3", session="s")).decode != first


def test_hard_session_whose_target_is_filtered_out_says_so():
    router = make_router("a", "b", affinity=AffinityConfig(mode="hard"))
    bound = router.place(request("1", session="s")).decode
    other = {"a": "b", "b": "a"}[bound]
    router.set_state(bound, healthy=False)

    with pytest.raises(NoCandidate) as caught:
        router.place(request("2", session="s"))

    assert caught.value.reasons[other] == f"the session is bound to {bound}"


def test_soft_session_stays_as_long_as_that_does_not_cost_too_much():
    router = make_router("a", "b", affinity=AffinityConfig(mode="soft", slack_ms=300.0))
    first = router.place(request("1", session="s")).decode
    router.first_token("1")
    router.place(request("x", tokens=450, first_token=7, pinned=first))

    assert router.place(request("2", session="s")).decode == first
    router.place(request("y", tokens=450, first_token=8, pinned=first))
    assert router.place(request("3", session="s")).decode != first


def test_reported_load_and_speed_count():
    router = make_router("a", "b")
    router.report_load("a", LoadReport(at=0.0, queued_tokens=100, running=0, used_blocks=0))
    assert router.place(request("1")).decode == "b"
    router.free("1")

    slow = [StepReport(wall_ms=4.0 * tokens, prefill_tokens=tokens) for tokens in (100, 200)] * 50
    router.report_steps("a", slow)

    assert router.place(request("2", pinned="b", first_token=9)).ttft_ms > 600.0
    with pytest.raises(UnknownTarget):
        router.report_load("nobody", LoadReport(0.0, 0, 0, 0))


def test_length_of_answers_is_learned():
    router = make_router("a", expected_output_tokens=100)
    for number in range(500):
        router.place(request(str(number)))
        router.free(str(number), output_tokens=400)

    assert router.expected_output_tokens == pytest.approx(400, rel=0.02)


def test_explanation_tells_candidates_terms_winner_margin_and_truth():
    clock = Time()
    router = make_router("a", "b", worker("c", taints=frozenset({"t"})), clock=clock)
    store(router, "b", 12)
    router.place(request())
    router.first_token("r", cached_tokens=100, ttft_ms=230.0)

    (decision,) = router.explain()

    told = decision.to_dict()
    assert told["chosen"] == {"decode": "b", "prefill": None}
    assert told["margin"] == pytest.approx(120.0)
    assert [option["decode"] for option in told["options"]] == ["b", "a"]
    assert told["options"][0]["terms"]["prefill"] == 80.0
    assert told["options"][0]["decode_overlap"] == {"device": 12}
    assert told["left_out"] == {"c": "is tainted: t"}
    assert told["predicted"] == {"ttft_ms": 80.0, "cached_tokens": 120}
    assert told["actual"] == {"ttft_ms": 230.0, "cached_tokens": 100}
    assert told["regret_ms"] == 30.0  # `a` promised 200
    assert decision.ttft_error_ms == 150.0


def test_counters_compare_the_chosen_overlap_with_the_best():
    router = make_router("a", "b")
    store(router, "a", 12)
    router.place(request("other", tokens=500, first_token=7, pinned="a"))

    router.place(request())

    counters = router.decisions.counters
    assert (counters.decisions, counters.not_best_overlap) == (2, 1)
    assert (counters.best_cached_tokens, counters.chosen_cached_tokens) == (120, 0)


def test_ring_keeps_the_last_decisions_and_of_each_the_cheapest_options_and_the_chosen_one():
    explain = ExplainConfig(decisions=3, options=2)
    router = make_router("a", "b", "c", "d", explain=explain)
    for number in range(6):
        router.place(request(str(number), first_token=number + 5, pinned=None))

    last = router.explain(10)

    assert [decision.request.request_id for decision in last] == ["5", "4", "3"]
    assert all(len(decision.options) == 2 for decision in last)
    assert all(decision.chosen in decision.options for decision in last)
    assert all(len(decision.candidates) == 2 for decision in last)
    assert last[0].to_dict()["num_candidates"] == 4
    router.first_token("0", ttft_ms=1.0)  # too old to be settled: no error
    assert router.decisions.counters.outcomes == 0


@pytest.mark.parametrize("name", ["round_robin", "random", "least_loaded", "power_of_two"])
def test_policies_without_events_place_and_free(name):
    router = make_router("a", "b", policy=PolicyConfig(name=name))
    for number in range(10):
        router.place(request(str(number)))
    for number in range(10):
        router.first_token(str(number))
        router.free(str(number))

    assert router.fleet["a"].load.request_ids == router.fleet["b"].load.request_ids == []
    assert router.decisions.counters.decisions == 10


def test_index_that_is_wrong_costs_a_wrong_guess_and_nothing_else():
    router = make_router("a", "b")
    store(router, "a", 20)
    router.place(request())

    router.index.on_batch(EventBatch("a", 1, 2, 0.0, (BlockRemoved(hashes(20)),)))
    router.first_token("r", cached_tokens=0, ttft_ms=200.0)

    counters = router.decisions.counters
    assert (counters.predicted_cached_tokens, counters.actual_cached_tokens) == (199, 0)
    router.free("r")


def test_bad_configuration_names_its_field():
    with pytest.raises(InvalidValue, match="router.expected_output_tokens = 0"):
        RouterConfig(expected_output_tokens=0)
    with pytest.raises(InvalidValue, match="explain.decisions = 0"):
        ExplainConfig(decisions=0)


def test_what_was_selected_can_be_booked_afterwards():
    router = make_router("a", "b", affinity=AffinityConfig(mode="hard"))
    store(router, "b", 12)

    selected = router.select(request(session="chat"))
    assert router.fleet["b"].load.view(0.0).waiting == 0
    reserved = router.reserve("r")

    assert reserved == selected
    assert router.fleet["b"].load.view(0.0).waiting == 1
    assert router.affinity.target_of("chat", 0.0) == "b"
    with pytest.raises(InvalidValue, match="is placed already"):
        router.reserve("r")


def test_what_nobody_selected_or_whose_target_has_left_cannot_be_booked():
    router = make_router("a")
    router.select(request())
    router.unregister("a")

    with pytest.raises(UnknownTarget, match="a is not registered"):
        router.reserve("r")
    with pytest.raises(UnknownReservation):
        router.reserve("another")


def test_a_clock_that_goes_backwards_places_and_frees_as_ever():
    clock = Time()
    clock.now = 100.0
    router, steady = make_router("a", clock=clock), make_router("a")
    assert router.place(request("r1")) == steady.place(request("r1"))

    clock.now = 3.0
    second = router.place(request("r2"))
    router.first_token("r1")
    clock.now = 1.0
    for name in ("r1", "r2"):
        router.free(name)

    assert second == steady.place(request("r2"))  # for it no time has passed
    assert all(not member.load.request_ids for member in router.fleet.members.values())


def test_bad_input_about_others_changes_no_placement():
    told, spared = make_router("a", "b"), make_router("a", "b")
    for router in (told, spared):
        store(router, "b", 20)
        store(router, "b", 20, first_token=7, seq=2)
    wide = BlockStored(None, hashes(20), block_size=SIZE + 1)
    cut = BlockStored(None, (b"short",))
    for batch in (
        EventBatch("stranger", 1, 1, 0.0, (BlockStored(None, hashes(20)),)),
        EventBatch("b", 0, 3, 0.0, (BlockRemoved(hashes(20)),)),  # of an older life
        EventBatch("a", 1, 1, 0.0, (wide, cut)),
    ):
        told.index.on_batch(batch)
    told.place(request("gone", first_token=9))
    told.free("gone")
    with pytest.raises(UnknownReservation):
        told.free("gone")
    with pytest.raises(UnknownTarget):
        told.set_state("stranger", healthy=False)

    counters = told.index.counters
    counted = (counters.unknown_source, counters.stale_epoch, counters.foreign_block_size)
    assert (*counted, counters.malformed) == (1, 1, 1, 1)
    for number, first_token in enumerate((1, 7, 1)):
        asked = request(f"r{number}", first_token=first_token)
        assert told.place(asked) == spared.place(asked)
    assert told.place(request("last")).decode == "b"
