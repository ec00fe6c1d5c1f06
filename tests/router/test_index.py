"""The index: what events, decisions and registrations make of a look-up."""

import random
from threading import Event, Thread

import pytest

from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.event_stream.follower import Counters, Follower
from stafette.kvtransfer.events import AllCleared, BlockRemoved, BlockStored, EventBatch
from stafette.router.errors import IncompatibleCache, InvalidValue, UnknownTarget
from stafette.router.guesses import GuessConfig
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec, IndexConfig, KvIndex, Overlap

SIZE = 4
HASHER = BlockHasher("key", SIZE, "m")
TOKENS = list(range(1, 101))


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def hashes(num_blocks: int, first_token: int = 1) -> tuple[bytes, ...]:
    tokens = [first_token, *TOKENS[1 : num_blocks * SIZE]]
    return tuple(HASHER.hash_blocks(tokens))


def chain(num_blocks: int, first_token: int = 1) -> bytes:
    return b"".join(hashes(num_blocks, first_token))


def spec(target="w", **options) -> CacheSpec:
    defaults = {"block_size": SIZE, "model": "m", "fingerprint": HASHER.fingerprint}
    return CacheSpec(target=target, **(defaults | options))


def batch(*events, target="w", epoch=1, seq=1, snapshot=False) -> EventBatch:
    return EventBatch(target, epoch, seq, 0.0, events, snapshot)


@pytest.fixture(params=[True, False], ids=["native", "plain"])
def make_index(request):
    def make(*targets: CacheSpec, clock=None, **options) -> KvIndex:
        config = IndexConfig(native=request.param, **options)
        index = KvIndex(Hashers("key", SIZE), config, clock or Time())
        for target in targets:
            index.register(target)
        return index

    return make


def test_match_tells_each_target_that_has_some_of_the_prompt(make_index):
    index = make_index(spec("a"), spec("b"), spec("c"))
    index.on_batch(batch(BlockStored(None, hashes(3)), target="a"))
    index.on_batch(batch(BlockStored(None, hashes(5)), target="b"))
    index.on_batch(batch(BlockStored(None, hashes(5, first_token=9)), target="c"))

    match = index.match(chain(8))

    assert match.overlaps() == {"a": Overlap(3), "b": Overlap(5)}
    assert match.num_blocks == 8


def test_overlap_is_told_by_tier(make_index):
    index = make_index(spec())
    index.on_batch(batch(BlockStored(None, hashes(2)), BlockStored(None, hashes(6), "host")))

    overlap = index.match(chain(8)).overlaps()["w"]

    assert overlap == Overlap(device=2, host=4)
    assert overlap.total == 6


def test_removed_and_cleared_blocks_are_not_found(make_index):
    index = make_index(spec())
    index.on_batch(batch(BlockStored(None, hashes(4)), BlockRemoved(hashes(4)[2:])))
    assert index.match(chain(4)).overlaps() == {"w": Overlap(2)}

    index.on_batch(batch(AllCleared(), seq=2))

    assert index.match(chain(4)).overlaps() == {}
    assert index.counters.forgotten_blocks == 2


def test_block_size_that_differs_is_an_error_at_registration(make_index):
    with pytest.raises(IncompatibleCache, match="w has block_size 16, the router has 4"):
        make_index(spec(block_size=16))


@pytest.mark.parametrize(
    "hasher", [BlockHasher("other key", SIZE, "m"), BlockHasher("key", SIZE, "n")]
)
def test_hashes_that_differ_are_an_error_at_registration(make_index, hasher):
    with pytest.raises(IncompatibleCache, match="hash fingerprint"):
        make_index(spec(fingerprint=hasher.fingerprint))


def test_target_that_leaves_is_forgotten(make_index):
    index = make_index(spec("a"), spec("b"))
    for target in ("a", "b"):
        index.on_batch(batch(BlockStored(None, hashes(4)), target=target))

    assert index.unregister("a") == 4

    assert index.match(chain(4)).overlaps() == {"b": Overlap(4)}
    index.on_batch(batch(BlockStored(None, hashes(4)), target="a", seq=2))
    assert index.counters.unknown_source == 1
    with pytest.raises(UnknownTarget, match="a is not registered"):
        index.unregister("a")


def test_answer_keeps_the_names_of_its_time(make_index):
    index = make_index(spec("old"))
    index.on_batch(batch(BlockStored(None, hashes(4)), target="old"))
    match = index.match(chain(4))

    index.unregister("old")
    index.register(spec("new"))  # gets the place that is free now

    assert match.overlaps() == {"old": Overlap(4)}
    assert index.match(chain(4)).overlaps() == {}


def test_target_that_registers_again_begins_empty(make_index):
    index = make_index(spec())
    index.on_batch(batch(BlockStored(None, hashes(4))))

    index.register(spec())

    assert index.match(chain(4)).overlaps() == {}
    assert index.held("w") == 0


def test_new_life_of_a_worker_begins_empty_and_the_old_one_is_not_heard(make_index):
    index = make_index(spec())
    index.on_batch(batch(BlockStored(None, hashes(4)), epoch=1))

    index.on_batch(batch(BlockStored(None, hashes(2)), epoch=2))
    index.on_batch(batch(BlockStored(None, hashes(9)), epoch=1, seq=2))

    assert index.match(chain(9)).overlaps() == {"w": Overlap(2)}
    assert index.counters.stale_epoch == 1


def test_snapshot_stands_for_all_that_is_cached(make_index):
    index = make_index(spec())
    index.on_batch(batch(BlockStored(None, hashes(4))))

    index.on_batch(batch(BlockStored(None, hashes(3, first_token=9)), seq=7, snapshot=True))

    assert index.match(chain(4)).overlaps() == {}
    assert index.match(chain(4, first_token=9)).overlaps() == {"w": Overlap(3)}


def test_lost_worker_is_forgotten_until_it_speaks_again(make_index):
    index = make_index(spec())
    index.on_batch(batch(BlockStored(None, hashes(4))))

    index.on_lost("w")
    assert index.match(chain(4)).overlaps() == {}

    index.on_batch(batch(BlockStored(None, hashes(1)), epoch=1, seq=9))
    assert index.match(chain(4)).overlaps() == {"w": Overlap(1)}
    index.on_reset("nobody")


def test_hashes_of_several_sizes_or_too_few_bytes_are_dropped_and_counted(make_index):
    index = make_index(spec())

    index.on_batch(batch(BlockStored(None, (b"1234567",)), BlockRemoved((b"x" * 16, b"y" * 8))))
    index.on_batch(batch(BlockStored(None, hashes(1)), seq=2))

    assert index.counters.malformed == 2
    assert index.match(chain(4)).overlaps() == {"w": Overlap(1)}


def test_event_without_hashes_changes_nothing(make_index):
    index = make_index(spec())

    index.on_batch(batch(BlockStored(None, ()), BlockRemoved(())))

    assert index.counters.malformed == 0
    assert index.match(b"").overlaps() == {}


def test_prediction_bridges_the_time_to_the_first_event(make_index):
    clock = Time()
    index = make_index(spec(), clock=clock, predicted=GuessConfig(ttl_s=5.0))
    index.predict("w", chain(6))
    assert index.match(chain(8)).overlaps() == {"w": Overlap(6)}

    index.on_batch(batch(BlockStored(None, hashes(8))))
    assert index.match(chain(8)).overlaps() == {"w": Overlap(8)}

    clock.now = 5.0
    index.on_batch(batch(BlockRemoved(hashes(8)[3:]), seq=2))
    assert index.match(chain(8)).overlaps() == {"w": Overlap(3)}


def test_target_without_events_is_guessed_from_decisions(make_index):
    clock = Time()
    index = make_index(
        spec("a", events=False), spec("b"), clock=clock, approximate=GuessConfig(ttl_s=60.0)
    )
    index.predict("a", chain(6))
    clock.now = 20.0

    assert index.match(chain(8)).overlaps() == {"a": Overlap(6)}
    clock.now = 60.0
    assert index.match(chain(8)).overlaps() == {}
    with pytest.raises(UnknownTarget):
        index.predict("nobody", chain(1))


def test_memory_is_bounded_and_what_goes_is_counted(make_index):
    index = make_index(spec(), max_entries=10)

    for first in range(2, 12):
        index.on_batch(batch(BlockStored(None, hashes(4, first)), seq=first))

    assert index.stats().entries == 10
    assert index.stats().evicted == 30
    assert index.match(chain(4, 11)).overlaps() == {"w": Overlap(4)}


def test_one_event_of_many_blocks_is_applied_whole(make_index):
    index = make_index(spec())
    many = tuple(number.to_bytes(16, "little") for number in range(10_000))

    index.on_batch(batch(BlockStored(None, many)))
    assert index.match(b"".join(many)).overlaps() == {"w": Overlap(10_000)}

    index.on_batch(batch(BlockRemoved(many[5_000:]), seq=2))
    assert index.held("w") == 5_000


def test_foreign_hashes_are_translated_by_their_tokens(make_index):
    index = make_index(spec(fingerprint=None))
    theirs = tuple(bytes([number]) * 32 for number in range(5))
    first = BlockStored(None, theirs[:2], token_ids=tuple(TOKENS[:8]), block_size=SIZE)
    second = BlockStored(theirs[1], theirs[2:], token_ids=tuple(TOKENS[8:20]), block_size=SIZE)

    index.on_batch(batch(first, second))
    assert index.match(chain(8)).overlaps() == {"w": Overlap(5)}

    index.on_batch(batch(BlockRemoved(theirs[3:]), seq=2))
    assert index.match(chain(8)).overlaps() == {"w": Overlap(3)}


def test_foreign_blocks_on_a_slower_tier_come_without_tokens(make_index):
    index = make_index(spec(fingerprint=None))
    theirs = tuple(bytes([number]) * 8 for number in range(3))
    stored = BlockStored(None, theirs, token_ids=tuple(TOKENS[:12]), block_size=SIZE)

    index.on_batch(batch(stored, BlockStored(None, theirs, "host", (), SIZE)))
    index.on_batch(batch(BlockRemoved(theirs[1:], "device"), seq=2))
    assert index.match(chain(3)).overlaps() == {"w": Overlap(device=1, host=2)}

    index.on_batch(batch(BlockRemoved(theirs, None), seq=3))
    assert index.match(chain(3)).overlaps() == {}


def test_foreign_blocks_whose_beginning_was_never_told_are_dropped_and_counted(make_index):
    index = make_index(spec(fingerprint=None))
    stored = BlockStored(b"p" * 8, (b"c" * 8,), token_ids=tuple(TOKENS[:4]), block_size=SIZE)

    index.on_batch(batch(stored, BlockRemoved((b"c" * 8,))))

    assert index.counters.unknown_parent == 1
    assert index.stats().entries == 0


def test_foreign_event_of_another_block_size_is_counted_and_told_once(make_index, caplog):
    index = make_index(spec(fingerprint=None))
    stored = BlockStored(None, (b"c" * 8,), token_ids=tuple(TOKENS[:16]), block_size=16)

    index.on_batch(batch(stored, stored))

    assert index.counters.foreign_block_size == 2
    assert len(caplog.records) == 1
    assert "w cannot be used: block size 16, registered 4" in caplog.text


def test_index_follows_a_lossy_stream_to_what_the_worker_has(make_index):
    """A worker's log and a follower that replays: whatever is lost, at the end both agree."""
    rng = random.Random(3)
    index = make_index(spec())
    log = EventLog("w", 1, capacity=20)
    follower = Follower("w", index, Counters())
    has: set[bytes] = set()
    for _ in range(300):
        blocks = hashes(rng.randrange(1, 20), rng.randrange(5, 9))
        event = BlockStored(None, blocks) if rng.random() < 0.6 else BlockRemoved(blocks[-3:])
        has = has | set(blocks) if isinstance(event, BlockStored) else has - set(blocks[-3:])
        log.add(event)
        sent = log.flush()
        if rng.random() < 0.7:
            follower.take(sent)
        if follower.behind and rng.random() < 0.3:
            follower.begin_replay()
            for missed in log.since(follower.start - 1):
                follower.take(missed)
            follower.end_replay()
    follower.take(log.snapshot())

    assert index.held("w") == len(has)
    for first in range(5, 9):
        blocks = hashes(20, first)
        whole = next((i for i, known in enumerate(blocks) if known not in has), 20)
        overlaps = index.match(chain(20, first)).overlaps()
        assert overlaps == ({"w": Overlap(whole)} if whole else {})


def test_closed_index_is_empty_and_takes_no_more(make_index):
    index = make_index(spec())
    index.on_batch(batch(BlockStored(None, hashes(4))))

    index.close()
    index.close()
    index.on_batch(batch(BlockRemoved(hashes(1)), seq=2))

    assert index.match(chain(4)).overlaps() == {}
    assert index.unregister("w") == 0


def test_events_and_look_ups_of_several_threads_do_not_disturb_each_other(make_index):
    names = ["a", "b", "c"]
    index = make_index(*map(spec, names))
    wrong: list[object] = []
    done = Event()

    def feed(name: str) -> None:
        for seq in range(1, 400):
            count = 1 + seq % 20
            stored, removed = BlockStored(None, hashes(20)), BlockRemoved(hashes(20)[count:])
            index.on_batch(batch(stored, removed, target=name, seq=seq))

    def ask(guest: str) -> None:
        while not done.is_set():
            for name, overlap in index.match(chain(20)).overlaps().items():
                if name not in names or not 1 <= overlap.device <= 20:
                    wrong.append((name, overlap))
            index.register(spec(guest))
            index.unregister(guest)

    readers = [Thread(target=ask, args=(f"guest {number}",)) for number in range(2)]
    writers = [Thread(target=feed, args=(name,)) for name in names]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()

    assert wrong == []
    assert index.match(chain(20)).overlaps() == dict.fromkeys(names, Overlap(20))
    assert index.stats().entries == 60


@pytest.mark.parametrize("field", ["max_entries", "max_guesses"])
def test_bound_below_one_is_refused(field):
    with pytest.raises(InvalidValue, match=f"index.{field} = 0"):
        IndexConfig(**{field: 0})
