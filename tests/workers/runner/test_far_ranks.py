"""Ranks on other hosts: they call, prove themselves, and make one engine with those here."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import msgpack
import numpy as np
import pytest
import torch

from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, EngineDead
from stafette.workers.runner.far_ranks import SpreadRanks
from stafette.workers.runner.link import Link
from stafette.workers.runner.parallel import ParallelRunner
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.opening import open_checkpoint

HERE = "127.0.0.1"
TOKEN = b"the token of a tested cluster"
TOKENS = np.random.default_rng(0).integers(0, 97, 12).astype(np.int32)


class Node:
    """Another host's part: starts its ranks, as whoever runs there does."""

    def __init__(self, token: bytes = TOKEN) -> None:
        self.token = token
        self.processes: dict[int, subprocess.Popen] = {}  # by rank

    def launch(self, node, port, ranks):
        for rank in ranks:
            command = [sys.executable, "-m", "stafette.workers.runner.rank", HERE, str(port)]
            process = subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE)
            process.stdin.write(self.token + b"\n")
            process.stdin.flush()
            self.processes[rank] = process
        return self.failure

    def failure(self) -> str:
        codes = {rank: p.poll() for rank, p in self.processes.items() if p.poll() is not None}
        return f"ranks have ended: {codes}" if codes else ""

    def close(self) -> None:
        for process in self.processes.values():
            process.stdin.close()
            process.wait(60)


@pytest.fixture
def node():
    node = Node()
    yield node
    node.close()


@pytest.fixture(scope="module")
def folder(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 96}
    toys.hf("llama", **heads).save_pretrained(folder)
    return str(folder)


def start(folder, launch, *, size=4, num_nodes=2, **options):
    flags = {"dtype": "float32", "device": "cpu", "runner": "torch"}
    config = EngineConfig(model=folder, tensor_parallel_size=size, **flags)
    ranks = SpreadRanks(HERE, TOKEN, num_nodes, launch)
    runner = ParallelRunner(config, open_checkpoint(folder, "auto"), ranks, **options)
    runner.allocate_kv(4)
    return runner


def calling(port: int, *ranks: int) -> list[str]:
    """Return the command of a process that calls as these ranks, else as rank 1, and ends."""
    code = "from stafette.workers.runner.far_ranks import call\n"
    calls = [f"call({HERE!r}, {port}, {rank}, {TOKEN!r})\n" for rank in ranks or (1,)]
    return [sys.executable, "-c", code + "".join(calls)]


def framed(message: dict) -> bytes:
    body = msgpack.packb(message)
    return len(body).to_bytes(8, "little") + body


def step() -> StepInputs:
    rows = np.arange(len(TOKENS), dtype=np.int32)
    return StepInputs(
        token_ids=TOKENS,
        positions=rows,
        query_starts=np.array([0, len(rows)], np.int32),
        context_lens=np.array([len(rows)], np.int32),
        block_tables=np.array([[2]], np.int32),
        logit_rows=rows,
    )


def test_ranks_of_two_nodes_give_the_logits_of_one(folder, node):
    config = EngineConfig(model=folder, dtype="float32", device="cpu", runner="torch")
    alone = TorchRunner(config, open_checkpoint(folder, "auto"))
    alone.allocate_kv(4)
    runner = start(folder, node.launch)
    try:
        assert sorted(node.processes) == [2, 3]
        together, expected = (r.forward(step()) for r in (runner, alone))
        torch.testing.assert_close(together.logits, expected.logits, atol=1e-4, rtol=0)
        assert runner.free_bytes() > 0
    finally:
        runner.close()

    assert [process.wait(60) for process in node.processes.values()] == [0, 0]


def test_a_far_rank_that_is_killed_is_named_and_ends_the_engine(folder, node):
    runner = start(folder, node.launch, size=2, step_timeout_s=5.0)
    try:
        os.kill(node.processes[1].pid, signal.SIGKILL)

        for _ in range(2):
            with pytest.raises(EngineDead, match="tensor parallel rank 1 on 127.0.0.1"):
                runner.forward(step())
    finally:
        runner.close()


def test_far_ranks_end_when_the_first_one_is_gone(folder, node):
    script = (
        "import sys; from stafette.workers.runner.far_ranks import SpreadRanks\n"
        "def launch(node, port, ranks): print(port, flush=True); return lambda: ''\n"
        f"ranks = SpreadRanks({HERE!r}, {TOKEN!r}, 2, launch).start(2, 60)\n"
        "print(ranks[0].receive(60), flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        node.launch(1, int(parent.stdout.readline()), [1])
        parent.stdout.readline()
        parent.kill()

    assert node.processes[1].wait(60) == 0


def test_a_far_rank_ends_with_whoever_has_started_it(node):
    with socket.create_server((HERE, 0)) as silent:
        node.launch(1, silent.getsockname()[1], [1])
        node.processes[1].stdin.close()

        assert node.processes[1].wait(60) is not None


def test_who_does_not_know_the_token_is_no_rank(folder):
    stranger = Node(token=b"another token")
    try:
        with pytest.raises(EngineDead, match="ranks have ended"):
            start(folder, stranger.launch, size=2)
    finally:
        stranger.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x05\0\0\0\0\0\0\0\x81\xa4rank",
        b"\x01\0\0\0\0\0\0\0\xc1",
        b"\x01\0\0\0\0\0\0\0\x90",
        *(framed({"rank": rank, "nonce": bytes(32)}) for rank in ("1", 1.0, -1, 1 << 40)),
    ],
)
def test_what_is_no_greeting_is_refused_and_the_rank_behind_it_comes_in(said):
    found = []

    def launch(node, port, ranks):
        stranger = socket.create_connection((HERE, port))
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        found.extend([stranger, subprocess.Popen(calling(port))])
        return lambda: ""

    (rank,) = SpreadRanks(HERE, TOKEN, 2, launch).start(2, 60.0)

    stranger, child = found
    with suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
    assert rank.rank == 1
    assert child.wait(60) == 0
    assert rank.has_ended(60.0)
    rank.stop()
    stranger.close()


def test_a_rank_of_another_engine_is_sent_away_and_the_one_behind_it_comes_in():
    started = []

    def launch(node, port, ranks):
        started.append(subprocess.Popen(calling(port, 7, 1)))
        return lambda: ""

    (rank,) = SpreadRanks(HERE, TOKEN, 2, launch).start(2, 60.0)

    assert rank.rank == 1
    assert started[0].wait(60) == 0
    rank.stop()


def test_who_proves_nothing_is_sent_away_and_the_rank_behind_it_comes_in():
    told = []

    def lie(port):
        link = Link(socket.create_connection((HERE, port)))
        link.send({"rank": 1, "nonce": bytes(32)})
        link.receive(60.0)
        link.send({"proof": bytes(32)})
        with pytest.raises(EOFError):
            link.receive(60.0)
        link.close()
        told.append(subprocess.Popen(calling(port)))  # only now, so that it cannot be the first

    def launch(node, port, ranks):
        threading.Thread(target=lie, args=(port,)).start()
        return lambda: ""

    (rank,) = SpreadRanks(HERE, TOKEN, 2, launch).start(2, 60.0)

    assert [child.wait(60) for child in told] == [0]
    rank.stop()


def test_nodes_that_nobody_calls_from_are_given_up_in_time():
    with pytest.raises(EngineDead, match="1 of 1 have not called in 0.1 s"):
        SpreadRanks(HERE, TOKEN, 2, lambda *_: lambda: "").start(2, 0.1)


def test_strangers_who_keep_calling_do_not_make_a_start_longer():
    over = threading.Event()

    def keep_calling(port):
        while not over.is_set():
            with suppress(OSError), socket.create_connection((HERE, port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                stranger.recv(1)

    def launch(node, port, ranks):
        threading.Thread(target=keep_calling, args=(port,)).start()
        return lambda: ""

    try:
        with pytest.raises(EngineDead, match=r"1 of 1 have not called in 1 s"):
            SpreadRanks(HERE, TOKEN, 2, launch).start(2, 1.0)
    finally:
        over.set()


def test_a_node_that_cannot_start_its_ranks_says_why():
    with pytest.raises(EngineDead, match="no room there"):
        SpreadRanks(HERE, TOKEN, 2, lambda *_: lambda: "no room there").start(2, 60.0)


def test_ranks_are_equally_many_on_each_node():
    with pytest.raises(ConfigError, match="tensor_parallel_size = 3: must be a multiple of 2"):
        SpreadRanks(HERE, TOKEN, 2, lambda *_: lambda: "").start(3, 60.0)


def test_a_head_that_is_not_of_the_cluster_is_not_obeyed():
    with socket.create_server((HERE, 0)) as listener:
        command = calling(listener.getsockname()[1])
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        connection, _ = listener.accept()
        with connection, process:
            link = Link(connection)
            link.receive(30.0)
            link.send({"nonce": bytes(32), "proof": bytes(32)})
            assert b"not of this cluster" in process.stderr.read()
            with pytest.raises(EOFError):
                link.receive(30.0)
