"""What there is to know of each worker of a fleet, as plain values: for people and consoles."""

import time
from collections.abc import Mapping
from typing import Any

from stafette.platform.serving.fleet import WorkerFleet
from stafette.workers.service.client import WorkerClient

_OF_DESCRIPTION = ("class", "host", "max_num_seqs", "max_model_len", "num_blocks", "block_size")
_OF_LOAD = ("role", "draining", "running", "waiting", "queued_tokens", "used_blocks")


def overview(fleet: WorkerFleet) -> list[dict[str, Any]]:
    """Return the connected workers by name; what a worker has not said yet is left out."""
    now = time.monotonic()
    return [_worker(name, client, now) for name, client in sorted(fleet.clients.items())]


def _worker(name: str, client: WorkerClient, now: float) -> dict[str, Any]:
    said: Mapping[str, object] = dict(client.description) | dict(client.load)
    known = {key: said[key] for key in (*_OF_DESCRIPTION, *_OF_LOAD) if key in said}
    heard = {"heard_s": round(now - client.load_at, 3)} if client.load else {}
    return {"name": name, "epoch": client.epoch, "address": client.address, **known, **heard}
