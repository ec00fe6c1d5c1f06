"""What there is to know of each worker of a fleet, as plain values: for people and consoles."""

import time
from typing import Any

from stafette.platform.serving.fleet import WorkerFleet
from stafette.workers.service.client import WorkerClient

_OF_DESCRIPTION = (
    *("class", "host", "max_num_seqs", "max_model_len"),
    *("num_blocks", "block_size", "block_bytes"),
)
_OF_LOAD = (
    *("role", "draining", "running", "waiting", "queued_tokens", "used_blocks"),
    *("prefix_queries", "prefix_hits", "pulled_tokens", "passed_tokens"),
)


def overview(fleet: WorkerFleet) -> list[dict[str, Any]]:
    """Return the connected workers by name; what a worker has not said yet is left out."""
    now = time.monotonic()
    clients, index = fleet.clients, fleet.router.index
    return [_worker(clients[name], now, index.held(name)) for name in sorted(clients)]


def _worker(client: WorkerClient, now: float, cached_blocks: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": client.name,
        "epoch": client.epoch,
        "address": client.address,
        "cached_blocks": cached_blocks,
    }
    description, load = client.description, client.load
    for name in _OF_DESCRIPTION:  # plain loops: there may be a thousand workers, every second
        if name in description:
            shown[name] = description[name]
    for name in _OF_LOAD:
        if name in load:
            shown[name] = load[name]
    if load:
        shown["heard_s"] = round(now - client.load_at, 3)
    return shown
