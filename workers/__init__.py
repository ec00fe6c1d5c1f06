"""The inference engine: paged KV, continuous batching, and the runners beneath.

Names are loaded when they are first used, so that `import stafette.workers` costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stafette.workers.async_engine import AsyncEngine
    from stafette.workers.config import EngineConfig
    from stafette.workers.llm import LLM
    from stafette.workers.sampling.params import SamplingParams, StructuredOutput

__all__ = ["LLM", "AsyncEngine", "EngineConfig", "SamplingParams", "StructuredOutput"]

# Torch's OpenMP reads these when it is loaded. By default a thread that waits spins for long,
# and starves its own team as soon as another process wants a core (3 tokens/s instead of 25,
# measured on two cores). Some 50 us bridge what lies between two loops: runner/torch_threads.py.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

_HOMES = {
    "LLM": "llm",
    "AsyncEngine": "async_engine",
    "EngineConfig": "config",
    "SamplingParams": "sampling.params",
    "StructuredOutput": "sampling.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
