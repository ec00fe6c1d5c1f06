"""Several connectors as one: who loads what, and what one that fails means to the others."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.connectors import registry
from stafette.kvtransfer.connectors.connector import (
    ALL_LAYERS,
    Finish,
    KvConnector,
    KvShare,
    LoadOrder,
    Save,
)
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.connectors.multi import MultiConfig, MultiConnector
from stafette.kvtransfer.connectors.null import NullConnector
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.errors import InvalidValue, TransferError

SIZE = 4  # tokens of a block


class Member(KvConnector):
    """Has the first `num_blocks` of any prompt; `broken` names the methods that raise."""

    def __init__(self, name: str, num_blocks: int | None = 0, broken: str = "") -> None:
        self.name = name
        self.num_blocks = num_blocks
        self.broken = broken
        self.loads: list[Load] = []
        self.saves: list[tuple[int, Save]] = []
        self.finished: list[str] = []
        self.answer = Finish()
        self.closed = 0

    @classmethod
    def of(cls, agent, config):
        return cls("member")

    def matched_tokens(self, request, num_held):
        self._break("matched_tokens")
        if self.num_blocks is None:
            return None
        return max(0, SIZE * self.num_blocks - num_held)

    def begin(self, request, first, blocks):
        self._break("begin")
        return LoadOrder.of(request, first, blocks, source=f"from {self.name}")

    def finish(self, request, reason=""):
        self._break("finish")
        self.finished.append(request.request_id)
        return self.answer

    def start_load(self, order):
        self._break("start_load")
        assert order.source == f"from {self.name}"
        self.loads.append(Load(order))
        return self.loads[-1]

    def save_layer(self, layer, save):
        self.saves.append((layer, save))
        self._break("save_layer")

    def close(self):
        self.closed += 1
        self._break("close")

    def _break(self, method: str) -> None:
        if self.broken == method:
            raise RuntimeError(f"{self.name} is broken")


def begin(multi: MultiConnector, request, num_held: int = 0) -> Load:
    """Load all that is matched, into blocks 100, 101, ..."""
    matched = multi.matched_tokens(request, num_held * SIZE)
    order = multi.begin(request, num_held, range(100, 100 + matched // SIZE))
    return multi.start_load(order)


def places(load: Load) -> tuple[int, int]:
    return load.order.first, load.order.end


def test_each_goes_on_where_the_one_before_it_ends(request_of):
    near, empty, far = Member("near", 2), Member("empty", 1), Member("far", 5)
    multi, request = MultiConnector([near, empty, far]), request_of(8)

    load = begin(multi, request, num_held=1)

    assert places(load) == (1, 5)
    assert [places(part) for part in near.loads] == [(1, 2)]
    assert [places(part) for part in far.loads] == [(2, 5)]
    assert [places(part) for part in empty.loads] == [(2, 2)]  # it is told that nothing is wanted
    assert far.loads[0].order.blocks == (101, 102, 103)
    assert far.loads[0].order.hashes == request.hashes[2:5]


def test_a_load_is_over_and_settled_when_all_its_parts_are(request_of):
    near, far = Member("near", 2), Member("far", 5)
    load = begin(MultiConnector([near, far]), request_of(8))

    far.loads[0].arrive(2, 5)
    assert load.num_arrived == 0
    near.loads[0].begin_write()
    near.loads[0].arrive(0, 2)

    assert load.ended
    assert load.error is None
    assert load.num_arrived == 5
    assert not load.settled
    near.loads[0].end_write()
    assert load.settled


def test_a_part_that_falls_short_cuts_the_load_there_and_ends_what_lies_behind(request_of):
    near, far = Member("near", 3), Member("far", 5)
    load, short = begin(MultiConnector([near, far]), request_of(8)), TransferError("short")

    near.loads[0].arrive(0, 2)
    near.loads[0].fail(short)

    assert load.ended
    assert load.error is short
    assert load.num_arrived == 2
    assert far.loads[0].ended


def test_a_part_that_fails_behind_leaves_those_before_it_their_time(request_of):
    near, far = Member("near", 3), Member("far", 5)
    load = begin(MultiConnector([near, far]), request_of(8))

    far.loads[0].fail(TransferError("gone"))
    assert not load.ended
    near.loads[0].arrive(0, 3)

    assert load.ended
    assert load.num_arrived == 3
    assert load.failed_blocks == (103, 104)


def test_cancelling_the_whole_ends_every_part(request_of):
    near, far = Member("near", 3), Member("far", 5)
    load = begin(MultiConnector([near, far]), request_of(8))

    load.cancel()

    assert near.loads[0].ended
    assert far.loads[0].ended
    assert load.settled


def test_one_that_does_not_know_yet_makes_the_answer_unknown(request_of):
    multi = MultiConnector([Member("near", 2), Member("slow", None)])

    assert multi.matched_tokens(request_of(8), 0) is None


def test_an_engine_that_takes_less_than_was_matched_gets_less(request_of):
    near, far = Member("near", 2), Member("far", 6)
    multi, request = MultiConnector([near, far]), request_of(8)
    assert multi.matched_tokens(request, 0) == 6 * SIZE

    load = multi.start_load(multi.begin(request, 0, [100, 101, 102]))

    assert [places(part) for part in near.loads + far.loads] == [(0, 2), (2, 3)]
    near.loads[0].arrive(0, 2)
    far.loads[0].arrive(2, 3)
    assert load.error is None


@pytest.mark.parametrize("method", ["matched_tokens", "begin", "start_load"])
def test_one_that_raises_counts_as_one_that_has_nothing(request_of, method, caplog):
    near, far = Member("near", 2), Member("far", 5, broken=method)
    multi = MultiConnector([near, far])

    load = begin(multi, request_of(8))
    near.loads[0].arrive(0, 2)

    assert load.ended
    assert load.num_arrived == 2
    assert load.settled
    assert multi.failures == {"far": 1}
    assert "far is broken" in caplog.text


def test_the_first_one_that_raises_does_not_keep_the_next_from_loading(request_of, caplog):
    near, far = Member("near", 2, broken="matched_tokens"), Member("far", 5)

    load = begin(MultiConnector([near, far]), request_of(8))

    assert [places(part) for part in far.loads] == [(0, 5)]
    far.loads[0].arrive(0, 5)
    assert load.error is None


def saving(request, release) -> Save:
    return Save("r1", 0, bytes(16), request.hashes[:2], (5, 6), release)


def test_blocks_are_released_when_every_member_has_released_them(request_of, caplog):
    one, other = Member("one"), Member("other")
    broken = Member("broken", broken="save_layer")
    multi, released = MultiConnector([one, broken, other]), []
    multi.save_layer(ALL_LAYERS, saving(request_of(2), lambda: released.append(1)))

    one.saves[0][1].release()
    one.saves[0][1].release()  # too often: counts once
    assert released == []
    other.saves[0][1].release()

    assert released == [1]
    assert multi.failures == {"broken": 1}


def test_layers_are_passed_to_each_and_only_the_last_is_released(request_of, layout):
    one, other = Member("one"), Member("other")
    multi, released = MultiConnector([one, other]), []
    multi.register([KvShare(bytearray(layout.block_bytes), layout)])
    save = saving(request_of(2), lambda: released.append(1))

    for layer in range(layout.num_layers):
        multi.save_layer(layer, save)
    for member in (one, other):
        for _, own in member.saves:
            own.release()

    assert [layer for layer, _ in one.saves] == [0, 1]
    assert released == [1]


def test_blocks_are_kept_while_anybody_keeps_them_and_parameters_are_joined(request_of, caplog):
    one, other, broken = Member("one"), Member("other"), Member("broken", broken="finish")
    one.answer, other.answer = Finish(False, {"one": 1}), Finish(True, {"other": 2})

    finish = MultiConnector([one, broken, other]).finish(request_of(2))

    assert finish == Finish(True, {"one": 1, "other": 2})
    assert one.finished == other.finished == ["r1"]


def test_waiting_for_a_layer_waits_for_it_in_every_part(request_of):
    near, far = Member("near", 2), Member("far", 5)
    multi = MultiConnector([near, far])
    load = begin(multi, request_of(8))

    near.loads[0].arrive(0, 2)
    assert not multi.wait_layer(load, 0, 0.01)
    threading.Timer(0.02, lambda: far.loads[0].arrive(2, 5)).start()

    assert multi.wait_layer(load, 0, 20.0)
    assert multi.wait_saved(20.0)


def test_all_are_closed_although_one_cannot(caplog):
    members = [Member("one"), Member("broken", broken="close"), Member("other")]

    MultiConnector(members).close()

    assert [member.closed for member in members] == [1, 1, 1]


@given(
    has=st.lists(st.integers(0, 10), min_size=1, max_size=5),
    held=st.integers(0, 10),
    arrived=st.lists(st.integers(0, 10), min_size=5, max_size=5),
    order=st.permutations(range(5)),
)
def test_what_arrives_is_the_longest_prefix_without_a_gap(request_of, has, held, arrived, order):
    members = [Member(str(number), count) for number, count in enumerate(has)]
    multi = MultiConnector(members)
    load = begin(multi, request_of(10), held)

    assert load.order.end == max(held, *has)
    usable, at = held, held
    for member, count in zip(members, arrived, strict=False):
        for part in member.loads:
            assert part.order.first == at
            at = part.order.end
            if usable == part.order.first:
                usable = min(part.order.end, usable + count)
    for number in order:
        for part in members[number].loads if number < len(members) else ():
            part.arrive(part.order.first, min(part.order.end, part.order.first + arrived[number]))
            part.fail(TransferError("no more"))

    assert load.settled
    assert load.num_arrived == usable - held
    assert (load.error is None) == (usable == load.order.end)


def test_the_registry_makes_connectors_by_name(make_agent):
    config = MultiConfig(connectors=(("null", None), ("p2p", P2pConfig(region="pool"))))

    multi = registry.make("multi", make_agent("worker"), config)

    assert [member.name for member in multi.members] == ["null", "p2p"]
    multi.close()


def test_when_one_member_cannot_be_made_the_others_are_closed():
    closed = []

    class Watched(NullConnector):
        def close(self):
            closed.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stafette.kvtransfer.connectors.null.NullConnector", Watched)
        with pytest.raises(InvalidValue, match="agent"):
            registry.make("multi", None, MultiConfig(connectors=(("null", None), ("p2p", None))))

    assert len(closed) == 1


@pytest.mark.parametrize("connectors", [(), (("null", None), ("null", None))])
def test_members_are_some_and_each_once(connectors):
    with pytest.raises(InvalidValue, match="each once"):
        MultiConfig(connectors=connectors)


def test_unknown_name_lists_what_there_is():
    with pytest.raises(InvalidValue, match="null, p2p, tiered, multi"):
        registry.make("nixl")


def test_the_null_connector_finds_nothing_and_keeps_nothing(request_of):
    null, request, released = registry.make("null"), request_of(2), []
    null.save_layer(ALL_LAYERS, saving(request, lambda: released.append(1)))
    load = null.start_load(null.begin(request, 0, [1, 2]))

    assert null.matched_tokens(request, 0) == 0
    assert (load.settled, load.num_arrived) == (True, 0)
    assert released == [1]
    assert null.finish(request) == Finish()
    null.close()
