"""A reader and its owner are two processes, and a reader that copies wrongly is found out."""

import os

import numpy as np
import pytest

from benchmarks.kvtransfer.peers.memcpy import Reader as Memcpy
from benchmarks.kvtransfer.peers.pair import OwnerProcess, Pair, WrongBytes
from benchmarks.kvtransfer.peers.protocol import Run

POOL_BYTES = 1 << 20
RUN = Run(num_blocks=16, block_bytes=4096, seed=0, seconds=0.01)


OWNER = """
import os
import numpy as np
from benchmarks.kvtransfer.peers.protocol import OwnerEnd

class Owner(OwnerEnd):
    def __init__(self, option):
        self._option = option
    def allocate(self):
        return np.zeros(4096, np.uint8)
    def start(self, pool):
        return self._option, os.getpid(), bool(pool.any())
    def answer(self, question):
        return question / 2
    def close(self):
        pass
"""


class OffByOne(Memcpy):
    def read(self, into, source, block_bytes):
        super().read(into, (source + 1) % (POOL_BYTES // block_bytes), block_bytes)


class Greedy(Memcpy):
    """Writes one block more than it was asked to."""

    def read(self, into, source, block_bytes):
        super().read(into, source, block_bytes)
        free = set(range(POOL_BYTES // block_bytes)) - set(into.tolist())
        super().read(np.array([min(free)]), source[:1], block_bytes)


def test_an_owner_is_a_process_of_its_own_with_a_full_pool(tmp_path, monkeypatch):
    (tmp_path / "an_owner.py").write_text(OWNER)
    monkeypatch.syspath_prepend(tmp_path)

    owner = OwnerProcess("an_owner", "some option")
    try:
        option, pid, filled = owner.hello

        assert option == "some option"
        assert pid != os.getpid()
        assert filled
        assert owner.ask(8) == 4
        assert owner.cpu_s() > 0
        with pytest.raises(RuntimeError, match="the owner's process: TypeError"):
            owner.ask("8")
    finally:
        owner.close()


def test_a_right_reader_is_measured():
    pair = Pair(Memcpy(), None, POOL_BYTES)

    answer = pair.measure(RUN)

    assert answer.iterations >= 5
    assert 0 < answer.best_s <= answer.p50_s
    assert answer.cpu_s_per_gb > 0


@pytest.mark.parametrize(
    ("reader", "told"), [(OffByOne, "do not hold"), (Greedy, "outside of the list")]
)
def test_a_wrong_reader_gets_no_numbers(reader, told):
    pair = Pair(reader(), None, POOL_BYTES)

    with pytest.raises(WrongBytes, match=told):
        pair.measure(RUN)
