"""Engines that several test files share: loading one is cheap, but not free."""

from collections.abc import Iterator

import pytest

from stafette.workers import LLM


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """The embedded model with default flags, on whatever runner this machine allows."""
    with LLM(max_num_seqs=16, max_model_len=1024, num_kv_blocks=512) as engine:
        yield engine
        stats = engine.engine.stats().scheduler
        assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)
