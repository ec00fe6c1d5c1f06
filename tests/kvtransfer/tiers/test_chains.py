"""Blocks in the order of their chains."""

from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.event_log import CachedBlocks
from stafette.kvtransfer.tiers.cache import Entry
from stafette.kvtransfer.tiers.chains import in_runs, removed, stored


def entry(name, slot=0):
    return Entry(name.encode(), name[:-1].encode() or ROOT, slot)


def test_chain_is_one_run_whatever_order_it_comes_in():
    runs = in_runs([entry("abc"), entry("a"), entry("ab")])

    assert [[e.key for e in run] for run in runs] == [[b"a", b"ab", b"abc"]]


def test_fork_begins_another_run():
    (event, other) = stored([entry("a"), entry("ab"), entry("ac")], "disk")

    assert (event.parent, event.hashes) == (None, (b"a", b"ab"))
    assert (other.parent, other.hashes, other.tier) == (b"a", (b"ac",), "disk")


def test_run_without_its_beginning_names_its_parent():
    (event,) = stored([entry("abc"), entry("abcd")], "host")

    assert event.parent == b"ab"


def test_no_event_of_removed_blocks_is_too_large():
    events = list(removed([entry(f"{i}") for i in range(100_000)], "disk"))

    assert [len(event.hashes) for event in events] == [65_536, 34_464]
    assert not list(removed([], "disk"))


@given(st.lists(st.text("ab", min_size=1, max_size=6), unique=True))
def test_events_tell_every_block_once(names):
    entries = [entry(name, slot) for slot, name in enumerate(names)]

    events = stored(entries, "host")

    told = CachedBlocks()
    for event in events:
        told.apply(event)
    assert told.on("host") == {e.key for e in entries}
    assert sum(len(event.hashes) for event in events) == len(entries)
