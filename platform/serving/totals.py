"""Adds up what workers count, so that the sum never falls when a worker goes or begins anew."""

from collections import Counter
from collections.abc import Iterable

from stafette.workers.service.client import WorkerClient
from stafette.workers.service.load import COUNTERS


class Totals:
    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self._seen: dict[tuple[str, str], int] = {}  # of a worker's life

    def look(self, clients: Iterable[WorkerClient]) -> None:
        """Take what has come since the last look; what nobody saw before a death is lost."""
        living: dict[tuple[str, str], int] = {}
        for client in clients:
            for name in COUNTERS:
                count = client.load.get(name)
                if isinstance(count, int):
                    key = (f"{client.name}/{client.epoch}", name)
                    self.sums[name] += max(0, count - self._seen.get(key, 0))
                    living[key] = count
        self._seen = living
