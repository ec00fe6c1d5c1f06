"""A stock vLLM feeds the router: the service predicts what that vLLM found in its own cache.

`vllm_recording.jsonl` holds what vLLM 0.32.0 published while it answered prompts that share
beginnings, evicted blocks, and was told to clear its cache; and for each prompt, how many of its
tokens vLLM itself reported as cached.
"""

import json
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RECORDING = HERE / "vllm_recording.jsonl"
ABOUT, *LINES = map(json.loads, RECORDING.read_text().splitlines())
SERVICE = {"block_size": ABOUT["block_size"]}
AFTER_RESET = 18  # this prompt's number; vLLM told of its reset only with its next batch


class Replay:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "vllm_replay.py"), str(RECORDING)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        address, replay_address = json.loads(self._process.stdout.readline())
        self.events = {
            "address": address,
            "replay_address": replay_address,
            "dialect": "vllm",
        }

    def send(self, count: int, *quiet: str) -> int:
        """Publish so many more batches; return how many there were."""
        self._process.stdin.write(" ".join([str(count), *quiet]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def replay():
    started = Replay()
    yield started
    started.kill()


def prompts():
    """Yield each prompt, the tokens that vLLM had cached, and the batches that it sent then."""
    for place, line in enumerate(LINES):
        if "prompt" in line:
            after = takewhile(lambda later: "seq" in later, LINES[place + 1 :])
            yield line["prompt"], line["cached"], len(list(after))


async def test_predictions_are_what_vllm_itself_found(serve, replay, eventually):
    served = await serve(service=SERVICE)
    await served.client.register("w", ABOUT["block_size"], events=replay.events)
    index = served.service.router.index
    asked = []

    for number, (prompt, cached, count) in enumerate(prompts()):
        selected = await served.client.select(f"r{number}", prompt, reserve=False)
        if number != AFTER_RESET:
            asked.append((selected.cached_tokens, cached))
        sent = replay.send(count)
        await eventually(lambda sent=sent: index.counters.batches >= sent)

    predicted, actual = zip(*asked, strict=True)
    assert predicted == actual
    assert sum(cached > 0 for cached in actual) >= 10
    counters = index.counters
    assert (counters.malformed, counters.unknown_parent, counters.foreign_block_size) == (0, 0, 0)


async def test_a_router_that_starts_later_has_the_buffer_replayed(serve, replay, eventually):
    replay.send(4, "quiet")
    served = await serve(service=SERVICE)

    await served.client.register("w", ABOUT["block_size"], events=replay.events)

    prompt, cached, _ = list(prompts())[4]

    async def is_known() -> bool:
        selected = await served.client.select("r", prompt, reserve=False)
        return selected.cached_tokens == cached

    await eventually(is_known)


async def test_a_block_size_that_is_not_the_workers_is_refused_at_once(serve, replay):
    served = await serve(service={"block_size": 16})

    with pytest.raises(Exception, match="w has block_size 32, the router has 16") as refused:
        await served.client.register("w", ABOUT["block_size"], events=replay.events)

    assert (refused.value.status, refused.value.code) == (409, "incompatible_cache")
