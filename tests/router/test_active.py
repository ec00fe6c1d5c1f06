"""Blocks in use, shared ones once: against a plain count of distinct prefixes."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.router.active import ActiveChains, common_blocks


def chain_of(name: str) -> bytes:
    return b"".join(
        hashlib.blake2b(name[: end + 1].encode(), digest_size=16).digest()
        for end in range(len(name))
    )


def prefixes(names) -> set[str]:
    return {name[: end + 1] for name in names for end in range(len(name))}


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.text("abc", max_size=8)), max_size=60))
def test_blocks_are_counted_once_however_requests_come_and_go(moves):
    active, running = ActiveChains(), []
    for leaves, name in moves:
        expected = len(prefixes([name]) & prefixes(running))
        assert active.shared(chain_of(name)) == expected
        if leaves and running:
            gone = running.pop(len(name) % len(running))
            active.remove(chain_of(gone))
        else:
            running.append(name)
            active.add(chain_of(name))

        assert active.num_blocks == len(prefixes(running))
        assert len(active) == len(running)


@given(st.text("ab", max_size=9), st.text("ab", max_size=9))
def test_common_blocks_are_those_of_the_common_prefix(one, other):
    common = len(prefixes([one]) & prefixes([other]))

    assert common_blocks(chain_of(one), chain_of(other)) == common
