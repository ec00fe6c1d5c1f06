"""A whole frontend, with HTTP, for a fleet whose addresses are in a file."""

import asyncio
import dataclasses
import json
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.serving.front import MODEL, Front
from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, address, listen

_LOOK_S = 0.1


async def serve(told: dict[str, Any], ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM. `told`: {"name", "fleet": file of addresses, "counters": file}."""
    front = Front(told["name"])
    following = asyncio.create_task(_follow(front, Path(told["fleet"]), Path(told["counters"])))
    config = FrontendConfig(port=0, drain_timeout_s=5.0)
    served = Served.of(config, MODEL, front.tokenizer, told["max_model_len"])
    server, listener = Server(Frontend(served, front.dispatcher, config)), listen(config)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.run(listener, lambda: ready(address(config, listener)))
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    await front.close()


async def _follow(front: Front, fleet: Path, counters: Path) -> None:
    while True:
        front.fleet.follow(json.loads(fleet.read_text()))
        found = dataclasses.asdict(front.dispatcher.counters)
        _replace(counters, found | {"moves_failed": front.dispatcher.mover.counters.failed})
        await asyncio.sleep(_LOOK_S)


def _replace(path: Path, value: object) -> None:
    """Write a file that is always whole: whoever writes it may be killed."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.replace(path)
