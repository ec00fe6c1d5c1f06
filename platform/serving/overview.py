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
    index = fleet.router.index
    return [
        {**_worker(client, now), "cached_blocks": index.held(name)}
        for name, client in sorted(fleet.clients.items())
    ]


def _worker(client: WorkerClient, now: float) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": client.name,
        "epoch": client.epoch,
        "address": client.address,
    }
    for names, said in ((_OF_DESCRIPTION, client.description), (_OF_LOAD, client.load)):
        shown.update((name, said[name]) for name in names if name in said)
    if client.load:
        shown["heard_s"] = round(now - client.load_at, 3)
    return shown
