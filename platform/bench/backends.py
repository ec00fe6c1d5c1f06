"""How a level is measured: by the client of this package, or by aiperf."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stafette.platform.bench.asking import Manner
from stafette.platform.bench.client import Client
from stafette.platform.bench.driving import Driver
from stafette.platform.bench.load import Level
from stafette.platform.bench.record import Record
from stafette.platform.bench.server_metrics import watching
from stafette.platform.bench.words import Speller

Keep = Callable[[Record], None]


class Backend(Protocol):
    async def measure(
        self, client: Client, manner: Manner, level: Level, salt: str, folder: Path, keep: Keep
    ) -> Mapping[str, Any]:
        """Hand on a record of each request; return what the server told meanwhile."""


@dataclass(frozen=True, slots=True)
class Builtin:
    words: Sequence[str]

    async def measure(
        self, client: Client, manner: Manner, level: Level, salt: str, folder: Path, keep: Keep
    ) -> Mapping[str, Any]:
        driver = Driver(client, manner, Speller(self.words, salt), keep)
        async with watching(client) as watch:
            await driver.run(level)
        return watch.summary()
