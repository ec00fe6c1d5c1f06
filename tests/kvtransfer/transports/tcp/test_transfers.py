"""Jobs between two ends: every byte in its place, whichever code moves it, and fair turns."""

import os
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.buffers import FileMemory
from stafette.kvtransfer.errors import TransferError

pytestmark = [
    pytest.mark.usefixtures("lending"),
    pytest.mark.parametrize("lending", [False, True], ids=["", "lent"], indirect=True),
]

MIB = 1 << 20
KIB = 1 << 10
POOL_BYTES = 64 * KIB
TRIES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def lay_out(triples):
    """Return (into, source, length) whose destinations follow each other, with gaps."""
    pairs, at = [], 0
    for length, gap, start in triples:
        length = min(length, POOL_BYTES - at - gap, POOL_BYTES - start)
        if length > 0:
            pairs.append((at + gap, start, length))
            at += gap + length
    return pairs


ranges = (
    st.lists(
        st.tuples(
            st.one_of(st.integers(1, 64), st.integers(1, 9_000)),
            st.integers(0, 600),
            st.integers(0, POOL_BYTES - 1),
        ),
        min_size=1,
        max_size=40,
    )
    .map(lay_out)
    .filter(bool)
)


@pytest.fixture
def duplex(kinds, ends, make_pair):
    """Two ends that read each other's pools; `kinds` tells whose loops are native."""
    one, other = ends("one", native=kinds[0]), ends("other", epoch=8, native=kinds[1])
    return make_pair(other, one, POOL_BYTES), make_pair(one, other, POOL_BYTES)


@TRIES
@given(lists=st.tuples(ranges, ranges), verify=st.booleans())
def test_scattered_ranges_arrive_in_both_directions_at_once(duplex, lists, verify):
    wanted = []
    for pair, triples in zip(duplex, lists, strict=True):
        pair.into.memory[:] = 0
        wanted.append(pair.into.memory.copy())
        for into, start, length in triples:
            wanted[-1][into : into + length] = pair.source.memory[start : start + length]

    jobs = [p.read(*triples, verify=verify) for p, triples in zip(duplex, lists, strict=True)]

    assert [job.outcome() for job in jobs] == [None, None]
    for pair, content in zip(duplex, wanted, strict=True):
        assert np.array_equal(pair.into.memory, content)


def test_lists_of_more_ranges_than_one_call_takes_arrive(kinds, ends, make_pair):
    pair = make_pair(ends(native=kinds[1]), ends("reader", native=kinds[0]), 4 * MIB)
    order = np.random.default_rng(1).permutation(4 * MIB // 1_000)
    scattered = [(int(i) * 1_000, int(i) * 1_000, 1_000 - i % 7) for i in order]

    job = pair.read(*scattered, verify=True)

    assert job.outcome() is None
    for start, _, length in scattered:
        part = slice(start, start + length)
        assert np.array_equal(pair.into.memory[part], pair.source.memory[part])
    assert job.moved == sum(length for _, _, length in scattered)


def test_jobs_of_many_threads_at_once_all_arrive(pairs):
    pair = pairs(4 * MIB, small_bytes=16 * KIB, max_requests=4)
    sizes = [1, 4_096, 70_000, 300_000]
    jobs = []

    def post(number):
        start = number * 512 * KIB
        for size in sizes * 4:
            jobs.append(pair.read((start, start, size), verify=number % 2 == 0))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [job.outcome() for job in jobs] == [None] * (8 * 16)
    for number in range(8):
        part = slice(number * 512 * KIB, number * 512 * KIB + 300_000)
        assert np.array_equal(pair.into.memory[part], pair.source.memory[part])
    assert pair.owner.counters.refused == {}


@pytest.mark.parametrize("verify", [False, True])
def test_job_that_is_spread_over_streams_arrives_whole(pairs, verify):
    pair = pairs(8 * MIB, streams=4, spread_bytes=MIB)

    job = pair.read(verify=verify)

    assert job.outcome() is None
    assert pair.arrived()
    assert job.moved == 8 * MIB
    assert pair.owner.counters.requests == 3


def test_small_job_does_not_wait_for_a_large_one(ends, proxies, pairs):
    owner = ends(streams=2, small_bytes=4 * KIB)
    proxy = proxies(owner)
    pair = pairs(MIB, owner=owner, through=proxy, streams=2, small_bytes=4 * KIB)
    proxy.hold_after = 64 * KIB
    large = pair.read()
    assert proxy.reached.wait(20)

    small = pair.read((0, 0, 4 * KIB))

    assert small.outcome() is None
    assert not large.finished.is_set()
    proxy.release()
    assert large.outcome() is None


def test_jobs_on_one_stream_take_turns(ends, proxies, pairs):
    options = {"streams": 1, "frame_bytes": 64 * KIB}
    owner = ends(**options)
    proxy = proxies(owner)
    pair = pairs(32 * MIB, owner=owner, through=proxy, **options)
    proxy.bytes_per_s = 50e6
    large = pair.read()
    while not large.moved:
        assert not large.finished.wait(0.001)

    small = pair.read((0, 0, 256 * KIB))

    assert small.outcome() is None
    assert not large.finished.is_set()
    assert large.outcome() is None
    assert pair.arrived()


@pytest.mark.parametrize("verify", [False, True])
def test_blocks_of_a_file_arrive(ends, make_pair, tmp_path, verify):
    pair = make_pair(ends(frame_bytes=8 * KIB), ends("reader", epoch=8), MIB)
    content = np.random.default_rng(2).integers(0, 256, 100_000, np.uint8)
    (tmp_path / "blocks").write_bytes(content.tobytes())
    fd = os.open(tmp_path / "blocks", os.O_RDONLY)
    region = pair.owner.add(FileMemory(fd, 90_000, 10_000), "file")
    grant = pair.owner.grant(region)

    job = pair.read((0, 50_000, 30_000), (40_000, 7, 20_000), grant=grant, verify=verify)

    assert job.outcome() is None
    assert np.array_equal(pair.into.memory[:30_000], content[60_000:90_000])
    assert np.array_equal(pair.into.memory[40_000:60_000], content[10_007:30_007])
    os.close(fd)


def test_file_that_became_shorter_is_an_error_of_that_job_alone(ends, make_pair, tmp_path):
    pair = make_pair(ends(), ends("reader", epoch=8), MIB)
    (tmp_path / "blocks").write_bytes(bytes(50_000))
    fd = os.open(tmp_path / "blocks", os.O_RDWR)
    grant = pair.owner.grant(pair.owner.add(FileMemory(fd, 50_000), "file"))
    os.ftruncate(fd, 10_000)

    job = pair.read((0, 0, 50_000), grant=grant)

    assert isinstance(job.outcome(), TransferError)
    assert "its file ends at 10000" in str(job.error)
    assert pair.read((0, 0, 4_096)).outcome() is None
    os.close(fd)
