"""Which workers of a pool cost the least when they leave."""

from collections.abc import Mapping, Sequence
from typing import Any

Worker = Mapping[str, Any]  # as serving.overview tells it


def victims(workers: Sequence[Worker], pool: str, count: int) -> list[Worker]:
    """Return the workers of a pool that have the least to move, those that drain before others."""

    def burden(worker: Worker) -> tuple[bool, int, int, str]:
        requests = worker.get("running", 0) + worker.get("waiting", 0)
        return not worker.get("draining"), requests, worker.get("used_blocks", 0), worker["name"]

    own = [worker for worker in workers if worker["name"].startswith(f"{pool}-")]
    return sorted(own, key=burden)[:count]
