"""The store: blocks go down, stay as long as they may, and come back as they were."""

import threading

import numpy as np
import pytest

from stafette.kvtransfer.blocks import ROOT, BlockHasher
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.tiers.config import HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.job import Outcome
from stafette.kvtransfer.tiers.preheating import preheat_prompts
from stafette.kvtransfer.tiers.store import TieredStore

LETTERS = [chr(ord("a") + i) for i in range(26)]


class Gate(ArrayBlocks):
    """Copies that wait until they may."""

    def __init__(self, memory):
        super().__init__(memory)
        self.may_copy = threading.Event()
        self.may_copy.set()
        self.copies = []  # what was begun

    def copy_out(self, slots, pool, rows):
        self.copies.append(("out", tuple(slots)))
        assert self.may_copy.wait(10)
        super().copy_out(slots, pool, rows)

    def copy_in(self, slots, pool, rows):
        self.copies.append(("in", tuple(slots)))
        assert self.may_copy.wait(10)
        super().copy_in(slots, pool, rows)


class Broken(ArrayBlocks):
    def copy_out(self, slots, pool, rows):
        raise RuntimeError("the device is gone")

    copy_in = copy_out


def test_block_comes_back_as_it_was(rigs):
    rig = rigs()

    assert rig.put("a", "ab") == ["DONE", "DONE"]
    assert rig.where("a", "ab", "abc") == ["host", "host"]
    assert rig.get("a", "ab", "abc") == ["DONE", "DONE", "MISSING"]


def test_nothing_behind_a_gap_is_of_use(rigs):
    rig = rigs()
    rig.put("a", "ab", "abc")
    rig.store._shared.host.cache.remove(b"ab".ljust(16, b"\0"))

    assert rig.where("a", "ab", "abc") == ["host"]
    assert rig.get("a", "ab", "abc") == ["DONE", "MISSING", "MISSING"]
    rig.put("ab", parents=[b"a".ljust(16, b"\0")])  # as the events tell


def test_block_that_is_there_is_not_copied_again(rigs):
    rig = rigs(device=Gate)
    rig.put("a", "ab")

    assert rig.put("a", "ab", "abc") == ["PRESENT", "PRESENT", "DONE"]
    assert rig.device.copies == [("out", (0,)), ("out", (1,)), ("out", (4,))]
    assert rig.store.stats().calls.already_there == 2


def test_block_on_its_way_is_not_copied_a_second_time(rigs):
    rig = rigs(device=Gate)
    rig.device.may_copy.clear()
    first = rig.offload(["a"])

    assert rig.put("a") == ["PRESENT"]
    rig.device.may_copy.set()
    assert first.wait(10)
    assert len(rig.device.copies) == 1


def test_least_recently_used_leaf_goes_first_on_a_last_tier(rigs):
    rig = rigs(host=4)
    rig.put("a", "ab")
    rig.put("x", "xy")
    rig.store.touch([b"a".ljust(16, b"\0"), b"ab".ljust(16, b"\0")])

    rig.put("n")

    assert rig.on("host") == {"a", "ab", "x", "n"}


def test_prefix_of_a_chain_that_is_larger_than_the_host_stays(rigs):
    rig = rigs(host=4)

    outcomes = rig.put(*LETTERS[:6])

    assert outcomes == ["DONE"] * 4 + ["DROPPED"] * 2
    assert rig.where(*LETTERS[:6]) == ["host"] * 4
    assert rig.store.stats().calls.offloads_dropped == 2


def test_what_leaves_the_host_is_found_on_disk_and_comes_back(rigs):
    rig = rigs(host=4, disk=32)
    for letter in LETTERS:
        rig.put(letter)
        rig.settle()

    assert rig.on("host") | rig.on("disk") == set(LETTERS)
    assert len(rig.on("host")) == 3  # one slot is kept free for what comes
    for letter in LETTERS:
        assert rig.get(letter) == ["DONE"]
    stats = rig.settle()
    assert stats.disk.counters.hits > 0
    assert stats.disk.counters.hits + stats.host.counters.hits == 26
    assert stats.calls.onboarded == stats.calls.wanted == 26


def test_nothing_is_lost_when_the_block_that_should_go_is_the_parent_of_the_one_that_comes(rigs):
    rig = rigs(host=6, disk=64, patience_s=20.0)
    for names in (["a", "aa", "aaa", "aaab"], ["a", "ab"], ["aab", "aaaa"]):
        parents = [name[:-1].encode().ljust(16, b"\0") for name in names]
        rig.put(*names, parents=parents)
        rig.settle()

    assert rig.on("host") | rig.on("disk") == {"a", "aa", "aaa", "aaab", "ab", "aab", "aaaa"}
    assert rig.store.stats().host.counters.lost == 0


def test_chain_that_lies_on_two_tiers_comes_back_whole(rigs):
    rig = rigs(host=16, disk=64)
    names = [f"{i:02}" for i in range(40)]
    for first in range(0, 40, 4):
        keys = [name.encode().ljust(16, b"\0") for name in names]
        rig.put(*names[first : first + 4], parents=([ROOT, *keys])[first : first + 4])
        rig.settle()

    assert set(rig.where(*names)) == {"host", "disk"}
    assert rig.get(*names) == ["DONE"] * 40


def test_disk_that_is_full_forgets_the_oldest(rigs):
    rig = rigs(host=3, disk=4)
    for letter in "abcdefgh":
        rig.put(letter)
        rig.settle()

    assert rig.on("host") == {"g", "h"}
    assert rig.on("disk") == {"c", "d", "e", "f"}
    assert rig.store.stats().disk.counters.evicted == 2


def test_block_on_disk_is_not_written_again(rigs):
    rig = rigs(host=3, disk=8)
    for letter in "abcd":
        rig.put(letter)
        rig.settle()
    written = rig.settle().disk.counters.stored

    for letter in "abcd":
        assert rig.get(letter) == ["DONE"]
        rig.settle()

    assert rig.settle().disk.counters.stored - written <= 2  # c and d, which were on the host only


def test_blocks_are_written_on_arrival_when_asked_to(rigs):
    rig = rigs(host=8, disk=8, disk_write="arrival")

    rig.put("a", "ab")
    rig.settle()

    assert rig.on("host") == rig.on("disk") == {"a", "ab"}


def test_block_that_several_prompts_want_is_read_once(rigs):
    rig = rigs(host=4, disk=16, device=Gate)
    for letter in "abcdefgh":
        rig.put(letter)
        rig.settle()
    assert rig.where("a") == ["disk"]
    read = rig.settle().disk.counters.read_bytes
    jobs = [rig.onboard(["a"]) for _ in range(5)]

    assert all(job.wait(10) for job, _ in jobs)

    content = rig.memory[jobs[0][1][0]]
    assert all((rig.memory[slots[0]] == content).all() and content.any() for _, slots in jobs)
    assert rig.settle().disk.counters.read_bytes - read == rig.block_bytes


def test_preheated_blocks_wait_on_the_host(rigs):
    rig = rigs(host=8, disk=32)
    for letter in LETTERS:
        rig.put(letter)
        rig.settle()
    assert rig.where("a") == ["disk"]

    job = rig.store.preheat([b"a".ljust(16, b"\0")])

    assert job.wait(10)
    assert job.outcomes == (Outcome.DONE,)
    assert rig.where("a") == ["host"]
    assert rig.store.stats().calls.preheated == 1
    assert rig.get("a") == ["DONE"]


def test_preheating_tells_what_is_there_already_and_what_is_nowhere(rigs):
    rig = rigs(host=8, disk=32)
    rig.put("a")

    job = rig.store.preheat([b"a".ljust(16, b"\0"), b"ab".ljust(16, b"\0")])

    assert job.wait(10)
    assert job.outcomes == (Outcome.PRESENT, Outcome.MISSING)
    assert job.num_ready == 1


def test_preheating_more_than_the_host_holds_keeps_the_beginning(rigs):
    rig = rigs(host=4, disk=64)
    names = [f"{i:02}" for i in range(12)]
    keys = [name.encode().ljust(16, b"\0") for name in names]
    for i, name in enumerate(names):
        rig.put(name, parents=[([ROOT, *keys])[i]])
        rig.settle()

    job = rig.store.preheat(keys)

    assert job.wait(10)
    assert [o.good for o in job.outcomes] == [True] * 3 + [False] * 9
    assert rig.where(*names[:3]) == ["host"] * 3


def test_pinned_blocks_stay_and_a_pin_can_be_released_twice(rigs):
    rig = rigs(host=4)
    rig.put("a", "ab")
    pin = rig.store.pin([b"a".ljust(16, b"\0"), b"ab".ljust(16, b"\0"), b"abc".ljust(16, b"\0")])
    assert len(pin.hashes) == len(pin.rows) == 2
    for letter in LETTERS[2:]:
        rig.put(letter)
    assert rig.where("a", "ab") == ["host", "host"]

    pin.release()
    pin.release()
    for letter in LETTERS[2:]:
        rig.put(letter)

    assert rig.where("a") == []


def test_pins_never_take_the_whole_tier(rigs):
    rig = rigs(host=4)
    for letter in "abcd":
        rig.put(letter)

    pins = [rig.store.pin([letter.encode().ljust(16, b"\0")]) for letter in "abcd"]

    assert [len(pin.hashes) for pin in pins] == [1, 1, 0, 0]
    assert rig.put("n") == ["DONE"]
    for pin in pins:
        pin.release()


def test_cleared_store_finds_nothing_and_takes_new_blocks(rigs):
    rig = rigs(host=4, disk=32)
    for letter in LETTERS:
        rig.put(letter)
    rig.settle()

    rig.store.clear()

    assert [rig.where(letter) for letter in LETTERS] == [[]] * 26
    assert not rig.on("host") | rig.on("disk")
    assert rig.put("a") == ["DONE"]
    assert rig.get("a") == ["DONE"]


def test_block_that_was_on_its_way_when_all_was_cleared_is_not_kept(rigs):
    rig = rigs(device=Gate)
    rig.device.may_copy.clear()
    job = rig.offload(["a"])
    while not rig.device.copies:
        threading.Event().wait(0.001)

    rig.store.clear()
    rig.device.may_copy.set()

    assert job.wait(10)
    assert job.outcomes == (Outcome.CANCELLED,)
    assert rig.where("a") == []


def test_what_does_not_fit_into_the_queue_is_dropped_from_the_end_and_counted(rigs):
    rig = rigs(host=64, device=Gate, max_offload_blocks=4)
    rig.device.may_copy.clear()

    job = rig.offload(LETTERS[:12])
    assert job.outcomes[-1] is Outcome.DROPPED
    assert not job.done
    rig.device.may_copy.set()

    assert job.wait(10)
    kept = job.num_ready
    assert 4 <= kept < 12
    assert set(job.outcomes[kept:]) == {Outcome.DROPPED}
    assert rig.store.stats().calls.offloads_dropped == 12 - kept


def test_too_much_to_onboard_at_once_is_refused(rigs):
    rig = rigs(host=32, device=Gate, max_onboard_blocks=8)
    rig.put(*LETTERS[:8])
    rig.device.may_copy.clear()
    first, _ = rig.onboard(LETTERS[:8])
    while rig.device.copies[-1][0] != "in":  # one of them waits no more, but is under way
        threading.Event().wait(0.001)

    second, _ = rig.onboard(LETTERS[:1])

    assert second.outcomes == (Outcome.DROPPED,)
    rig.device.may_copy.set()
    assert first.wait(10)
    assert rig.get(*LETTERS[:8]) == ["DONE"] * 8


def test_cancelled_offload_lets_go_of_what_is_not_being_copied(rigs):
    rig = rigs(host=64, device=Gate)
    rig.device.may_copy.clear()
    job = rig.offload(LETTERS)
    while not rig.device.copies:
        threading.Event().wait(0.001)

    job.cancel()
    assert job.counts()[Outcome.CANCELLED] == 26 - len(rig.device.copies[0][1])
    assert not job.done  # a copy is still reading the device
    rig.device.may_copy.set()

    assert job.wait(10)
    assert job.num_ready == len(rig.device.copies[0][1])


def test_device_slot_that_was_given_up_is_never_written(rigs):
    rig = rigs(host=8, device=Gate)
    rig.put("a", "ab", "abc")
    rig.device.may_copy.clear()
    busy, _ = rig.onboard(["a"])
    while len(rig.device.copies) < 4:
        threading.Event().wait(0.001)
    job, slots = rig.onboard(["a", "ab", "abc"])

    job.cancel()
    assert job.done
    rig.device.may_copy.set()
    rig.settle()

    assert busy.outcomes == (Outcome.DONE,)
    assert not rig.memory[slots].any()


def test_onboarding_ends_by_its_deadline(rigs):
    rig = rigs(host=8, device=Gate)
    rig.put("a")
    rig.device.may_copy.clear()
    busy, _ = rig.onboard(["a"])
    while len(rig.device.copies) < 2:
        threading.Event().wait(0.001)

    job, slots = rig.onboard(["a"], timeout_s=0.05)

    assert job.wait(10)
    assert job.outcomes == (Outcome.TIMED_OUT,)
    rig.device.may_copy.set()
    rig.settle()
    assert not rig.memory[slots].any()
    assert busy.done


def test_device_that_fails_is_counted_and_holds_nothing(rigs):
    rig = rigs(device=Broken)

    assert rig.put("a") == ["FAILED"]

    assert rig.store.stats().host.counters.errors == 1
    assert rig.where("a") == []


def test_rows_are_named_before_they_are_overwritten(rigs):
    rig = rigs(host=2)
    told = []
    rig.store.tell_overwritten(lambda rows: told.extend(rows))

    for letter in "abc":
        rig.put(letter)

    assert sorted(told[:2]) == [0, 1]
    assert told[2] == told[0]


def test_host_pool_can_be_shown_to_peers_row_by_row(rigs, tools):
    rig = rigs(host=4)
    rig.put("a", "ab")
    pin = rig.store.pin([tools.key_of("a"), tools.key_of("ab")])

    pool = rig.store.host_memory.array.reshape(4, rig.block_bytes)

    assert (pool[pin.rows[1]] == tools.content_of(tools.key_of("ab"))).all()
    pin.release()


def test_events_go_into_a_log_and_tell_what_can_be_found(tmp_path, tools):
    log = EventLog("worker", 1)
    rig = tools.Rig(tools.config_of(4, 16, tmp_path / "disk"))
    store = TieredStore(
        tools.config_of(4, 16, tmp_path / "other"), ArrayBlocks(rig.memory), log.add
    )
    keys, parents = tools.chain_of(["a", "ab", "abc"])

    assert store.offload(keys, parents, [0, 1, 2]).wait(10)

    log.flush()
    (event,) = log.snapshot().events
    assert (event.parent, event.hashes, event.tier) == (None, tuple(keys), "host")
    store.close()
    rig.store.close()


def test_closed_store_drops_everything_and_can_be_closed_again(tools):
    rig = tools.Rig(tools.config_of(4))
    rig.put("a")

    rig.store.close()
    rig.store.close()

    assert rig.put("b") == ["DROPPED"]
    assert rig.get("a") == ["DROPPED"]
    assert rig.store.preheat([tools.key_of("a")]).outcomes == (Outcome.DROPPED,)


def test_closing_ends_what_is_under_way(tools):
    rig = tools.Rig(tools.config_of(64), device=Gate)
    rig.device.may_copy.clear()
    job = rig.offload(LETTERS)
    threading.Timer(0.05, rig.device.may_copy.set).start()

    rig.store.close()

    assert job.done
    assert set(job.outcomes) <= {Outcome.DONE, Outcome.CANCELLED}


def test_empty_lists_are_done_at_once(rigs):
    rig = rigs()

    assert rig.store.offload([], [], []).done
    assert rig.store.onboard([], []).done
    assert rig.store.preheat([]).done
    assert len(rig.store.lookup([])) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.offload([bytes(16)], [], [0]), "parents = 0: must be as many as hashes: 1"),
        (lambda s: s.offload([bytes(16)], [ROOT], []), "slots = 0: must be as many as hashes: 1"),
        (lambda s: s.onboard([bytes(16)], [4096]), "slots = 4096: must be in 0..4095"),
        (lambda s: s.onboard([b"short"], [0]), "hashes = b'short': must have 16 bytes each"),
    ],
)
def test_wrong_argument_is_named(rigs, call, message):
    with pytest.raises(InvalidValue, match=message.replace(".", r"\.")):
        call(rigs().store)


def test_host_without_room_for_a_block_is_refused():
    config = TiersConfig(host=HostConfig(capacity_bytes=100))

    with pytest.raises(InvalidValue, match="at least one block of 4096 bytes"):
        TieredStore(config, ArrayBlocks(np.zeros((1, 4096), np.uint8)))


def test_prompts_are_preheated_by_their_tokens(rigs):
    rig = rigs(host=16, disk=64)
    hasher = BlockHasher("secret", block_size=4)
    prompts = [list(range(12)), [*range(8), 9, 9, 9, 9, 5]]
    for hashes in map(hasher.hash_blocks, prompts):
        slots = rig.slots(len(hashes))
        assert rig.store.offload(hashes, [ROOT, *hashes[:-1]], slots).wait(10)
    for letter in LETTERS:
        rig.put(letter)
        rig.settle()

    jobs = preheat_prompts(rig.store, hasher, prompts)

    assert all(job.wait(10) and job.num_ready == 3 for job in jobs)
    for hashes in map(hasher.hash_blocks, prompts):
        assert rig.store.lookup(hashes).num_on("host") == 3
