import random
import socket
import threading

import numpy as np
import pytest

from benchmarks.common.report import Report
from benchmarks.kvtransfer import soak
from benchmarks.kvtransfer.soaking.client import BLOCKS_A_CLIENT, SHARE_BYTES, Client
from benchmarks.kvtransfer.soaking.content import BLOCK_BYTES, block_content
from benchmarks.kvtransfer.soaking.process import OwnerGone, OwnerProcess
from benchmarks.kvtransfer.soaking.proxy import Proxy
from benchmarks.kvtransfer.soaking.tally import Tally

PATIENCE_S = 20.0


def test_no_two_blocks_or_versions_share_a_word():
    words = [block_content(block, version) for block in (0, 1, 2047) for version in (0, 1, 1 << 23)]

    assert len(np.unique(np.concatenate(words))) == 9 * BLOCK_BYTES // 8


@pytest.fixture
def client():
    share = np.zeros(SHARE_BYTES // 8, np.uint64)
    return Client(0, None, share, [], Tally())


class Named:
    class owner:
        name = "owner-0"


def test_a_block_with_the_bytes_of_another_version_is_noticed(client):
    client._share[3] = block_content(9, 4)

    client._check(Named, [3], [9], [4])
    assert client._tally.wrong == []
    client._check(Named, [3], [9], [5])

    assert client._tally.wrong == ["block 9 of owner-0"]


def test_a_byte_that_comes_after_the_end_of_a_transfer_is_noticed(client):
    client._share[:] = np.uint64(0xABABABABABABABAB)
    client._quiet = True

    client._look()
    assert client._tally.wrong == []
    client._share[BLOCKS_A_CLIENT - 1, -1] += np.uint64(1)
    client._look()

    assert len(client._tally.wrong) == 1


def test_the_proxy_passes_bytes_on_until_its_connections_are_cut():
    proxy, server = Proxy(), socket.create_server(("127.0.0.1", 0))
    proxy.target = server.getsockname()
    near = socket.create_connection(proxy.address)
    far, _ = server.accept()

    near.sendall(b"hello")
    assert far.recv(5, socket.MSG_WAITALL) == b"hello"
    while proxy.num_cut == 0:
        proxy.cut(random.Random(1))

    near.settimeout(PATIENCE_S)
    assert near.recv(1) == b""
    for each in (proxy, server, near, far):
        each.close()


def test_an_owner_that_is_killed_while_it_is_asked_says_so_and_lives_again(tmp_path):
    owner = OwnerProcess("owner-0", 2.0, tmp_path / "log")
    first = owner.metadata
    owner._process.send_signal(19)  # SIGSTOP: the question is not answered
    errors: list[Exception] = []

    def ask() -> None:
        try:
            owner.ask("living")
        except OwnerGone as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    owner.restart()
    thread.join(PATIENCE_S)

    assert len(errors) == 1
    assert owner.metadata != first
    assert owner.ask("living") == [0, 0]
    owner.close()


def test_a_short_soak_finds_nothing(monkeypatch):
    report = Report("a test")
    monkeypatch.setattr(soak, "TTL_S", 0.5)

    soak.run(0.05, 1, report)

    assert report.missed == []
