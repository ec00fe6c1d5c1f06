"""Mock workers on a virtual clock, and what they have answered."""

from dataclasses import replace

import pytest

from stafette.workers import SamplingParams
from stafette.workers.mocker.config import DEFAULT_FLAGS, MockerConfig
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.virtual import VirtualCluster, VirtualTime
from stafette.workers.request import Request

# Times whose sums can be done in the head: 1 s a step, 10 ms a prompt's token.
PLAIN = Profile(
    step_ms=1_000.0,
    prefill_ms_per_token=10.0,
    prefill_ms_per_pair=0.0,
    decode_ms_per_seq=0.0,
    decode_ms_per_kv_token=0.0,
    kv_bytes_per_token=1_000_000,
    transfer_gb_s=1.0,
    transfer_latency_ms=0.0,
)


class Stage:
    """Workers on one virtual clock; keeps all that they answer."""

    def __init__(self) -> None:
        self.time = VirtualTime()
        self.cluster = VirtualCluster(self.time)
        self.deltas = []  # (when, delta)
        self.batches = {}  # of events, by worker

    def worker(self, name="w", profile=PLAIN, **options):
        """Add a worker; options are its config's, or its engine's."""
        flags = {k: options.pop(k) for k in list(options) if hasattr(DEFAULT_FLAGS, k)}
        engine = replace(DEFAULT_FLAGS, **({"async_scheduling": False} | flags))
        config = MockerConfig(name=name, engine=engine, profile=profile, **options)
        worker = self.cluster.add(config, self._heard)
        batches = self.batches.setdefault(name, [])
        worker.on_kv_events = batches.append
        return worker

    def request(self, name="r", prompt=64, output=(), **params):
        if isinstance(prompt, int):
            prompt = [number * 7 % 1_000 + 5 for number in range(prompt)]
        wanted = SamplingParams(**({"max_tokens": 8} | params))
        return Request(
            request_id=name,
            prompt_token_ids=list(prompt),
            params=wanted,
            output_token_ids=list(output),
        )

    def tokens(self, name="r"):
        own = (delta for _, delta in self.deltas if delta.request_id == name)
        return [token for delta in own for token in delta.token_ids]

    def end(self, name="r"):
        own = [delta for _, delta in self.deltas if delta.request_id == name]
        return own[-1].finish_reason if own else None

    def times(self, name="r"):
        return [when for when, delta in self.deltas if delta.request_id == name]

    def _heard(self, deltas) -> None:
        self.deltas += [(self.time.now, delta) for delta in deltas]


@pytest.fixture
def stage():
    return Stage()
