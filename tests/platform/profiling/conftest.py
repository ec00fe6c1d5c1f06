"""A mock worker on a virtual clock, stepped as an engine is: its speed is known exactly."""

from dataclasses import replace

import pytest

from stafette.platform.profiling.document import Limits
from stafette.platform.profiling.engine_target import EngineTarget
from stafette.workers.mocker.config import DEFAULT_FLAGS, MockerConfig
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.virtual import VirtualCluster, VirtualTime

TRUTH = Profile(
    step_ms=5.0,
    prefill_ms_per_token=0.5,
    prefill_ms_per_pair=0.001,
    decode_ms_per_seq=1.0,
    decode_ms_per_kv_token=0.01,
    kv_bytes_per_token=46_080,
)
LIMITS = Limits(
    max_num_seqs=32,
    max_num_batched_tokens=512,
    max_model_len=2048,
    kv_tokens=8192,
    block_size=16,
)


class SteppedMock:
    """Its clock goes on to what happens next whenever it is asked to step."""

    vocab_size = 49_152

    def __init__(self, profile=TRUTH, **flags):
        self.time = VirtualTime()
        self.requests = 0
        self._deltas = []
        engine = replace(
            DEFAULT_FLAGS,
            max_num_seqs=LIMITS.max_num_seqs,
            max_num_batched_tokens=LIMITS.max_num_batched_tokens,
            max_model_len=LIMITS.max_model_len,
            num_kv_blocks=LIMITS.kv_tokens // 16,
            async_scheduling=False,
            **flags,
        )
        config = MockerConfig(name="w", engine=engine, profile=profile)
        self._worker = VirtualCluster(self.time).add(config, self._deltas.extend)

    @property
    def has_work(self):
        return self._worker.has_work or bool(self._worker._open)

    def add(self, request):
        self.requests += 1
        self._worker.generate(request)

    def abort(self, request_id):
        return self._worker.abort(request_id)

    def step(self):
        while not self._deltas and self.has_work and self._worker.next_step_at() is not None:
            self.time.run(self._worker.next_step_at())
        come, self._deltas[:] = list(self._deltas), []
        return come


@pytest.fixture
def engine():
    return SteppedMock()


@pytest.fixture
def target(engine):
    base = Profile(kv_bytes_per_token=TRUTH.kv_bytes_per_token)
    subject = {"kind": "engine", "model": "mock"}
    return EngineTarget(engine, subject, LIMITS, base, samples=2, clock=engine.time)
