"""Reads between processes whose pools are in GPU memory, by each transport that moves it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROCESS = Path(__file__).with_name("gpu_process.py")
TOKEN = "the cluster's token"
MIB = 1 << 20
BLOCK = 4096
NUM_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
SECOND = "cuda:1" if NUM_GPUS > 1 else "cuda:0"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not NUM_GPUS, reason="needs an NVIDIA GPU"),
]

WAYS = [
    ("cuda_ipc", "cuda:0", SECOND),
    ("cuda_ipc", "cuda:0", "cuda:0"),
    ("cuda_ipc", "cuda:0", "shared"),
    ("cuda_ipc", "shared", "cuda:0"),
    ("torch_dist", "cuda:0", SECOND),  # NCCL where these are two GPUs, gloo otherwise
    ("torch_dist", "cuda:0", "shared"),
    ("torch_dist", "shared", "cuda:0"),
    ("nixl", "cuda:0", SECOND),
    ("nixl", "cuda:0", "shared"),
]


class Failed(Exception):
    """What a command raised: the class of the error, and its text."""


class GpuProcess:
    def __init__(self, name: str, transport: str, memory: str, seed: int) -> None:
        settings = {
            "name": name,
            "transport": transport,
            "token": TOKEN,
            "memory": memory,
            "pool_bytes": 64 * MIB,
            "block_bytes": BLOCK,
            "seed": seed,
        }
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(PROCESS), json.dumps(settings)], stdin=pipe, stdout=pipe, text=True
        )
        self.metadata = self._answer()

    def __call__(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self):
        answer, error = json.loads(self.process.stdout.readline())
        if error is not None:
            raise Failed(*error)
        return answer


@pytest.fixture
def start():
    started = []

    def begin(*settings) -> GpuProcess:
        started.append(GpuProcess(*settings))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


@pytest.fixture(params=WAYS, ids="-".join)
def pair(request, start):
    transport, theirs, ours = request.param
    if transport == "nixl" and importlib.util.find_spec("nixl") is None:
        pytest.skip("nixl is not installed")
    owner = start("owner", transport, theirs, 1)
    reader = start("reader", transport, ours, 2)
    reader("add_peer", owner.metadata)
    return owner, reader


def test_everything_arrives(pair):
    owner, reader = pair
    everything = [[0, 64 * MIB]]

    assert reader("settle", reader("read", owner("grant"), everything, everything))

    assert reader("same_as", 1, 0, 64 * MIB)


def test_scattered_blocks_arrive_and_nothing_beside_them(pair):
    owner, reader = pair
    ranges = [[block * BLOCK, BLOCK] for block in range(0, 4000, 2)]

    assert reader("settle", reader("read", owner("grant"), ranges, ranges))

    for start, length in ranges[::97]:
        assert reader("same_as", 1, start, start + length)
        assert reader("same_as", 2, start + length, start + 2 * length)


def test_blocks_overwritten_before_the_read_are_not_taken(pair):
    owner, reader = pair
    ticket = owner("grant")
    owner("overwrite", [0], 3)

    with pytest.raises(Failed, match="StaleBlocks"):
        reader("settle", reader("read", ticket, [[0, BLOCK]], [[0, BLOCK]]))

    assert reader("same_as", 2, 0, BLOCK)


def test_killed_owner_does_not_harm_the_reader(pair):
    owner, reader = pair
    everything = [[0, 64 * MIB]]
    numbers = [reader("read", owner("grant"), everything, everything) for _ in range(4)]

    owner.kill()

    ends = {end_of(reader, number) for number in numbers}
    assert ends <= {"done", "PeerLost", "TransferTimedOut", "TransportUnavailable"}
    reader("overwrite", [0], 4)  # its GPU still works
    assert reader("same_as", 4, 0, BLOCK)


def end_of(reader, number: int) -> str:
    try:
        reader("settle", number)
    except Failed as failed:
        return failed.args[0]
    return "done"
