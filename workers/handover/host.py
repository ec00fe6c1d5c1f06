"""What a hand-over needs to know of the engine whose blocks it moves."""

from collections.abc import Callable
from typing import Protocol

from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.stats import EngineStats


class KvHost(Protocol):
    """An engine, or what stands for one. Used by its thread only."""

    is_stalled: bool  # the last step found work, but no blocks for it: others hold them

    @property
    def pool(self) -> BlockPool: ...

    def is_waiting(self, request_id: str) -> bool | None:
        """Whether a request was not admitted yet; None: it is not here."""

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call back when the batches that are on their way now are settled."""

    def tell_kv_events(self) -> None:
        """Pass on what has changed in the cache since the last time."""

    def stats(self) -> EngineStats: ...
