"""Starts a server with flags, waits until it answers, and ends it with all its processes."""

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stafette.platform.bench.client import Client, ClientConfig
from stafette.platform.bench.endpoints import Endpoint
from stafette.platform.bench.errors import BenchError
from stafette.platform.bench.tuning.knobs import Flags, as_words
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.trust import Trust, advice

PLACEHOLDER = "{flags}"
_LOOK_S = 0.2
_END_S = 60.0
_TAIL_CHARS = 300
_READY = re.compile(r"ready at (\S+)/v1;")


class NotStarted(BenchError):
    """`remedy` is the end of what the server said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Either our own, one engine in a process, or whatever `command` starts at `url`."""

    base: Flags  # of our own
    command: str | None = None
    url: str | None = None
    key: str | None = None
    trust: Trust = Trust()
    start_s: float = 600.0

    def __post_init__(self) -> None:
        if (self.command is None) != (self.url is None):
            remedy = "needs the other: what starts a server, and where it is then"
            raise InvalidSetting("--restart-command and --url", self.command or self.url, remedy)
        if self.command is not None and PLACEHOLDER not in self.command:
            remedy = f"must have {PLACEHOLDER} where the flags belong"
            raise InvalidSetting("--restart-command", self.command, remedy)

    def words(self, flags: Flags) -> list[str]:
        """Return the command that starts a server with these flags."""
        if self.command is not None:
            return shlex.split(self.command.replace(PLACEHOLDER, shlex.join(as_words(flags))))
        own = as_words({**self.base, **flags})
        return [sys.executable, "-P", "-m", "stafette", "serve", "--local", "--port", "0", *own]

    @asynccontextmanager
    async def running(self, flags: Flags, log: Path) -> AsyncIterator[str]:
        """Give the URL of a server that answers."""
        if self.url is not None and await self._answers(self.url):
            remedy = "answers already: stop it, for what is tried here is started here"
            raise InvalidSetting("--url", self.url, remedy)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = self.words(flags)
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *words, stdout=file, stderr=file, start_new_session=True
            )
        try:
            yield await self._ready(process, log)
        finally:
            await _end(process)

    async def _ready(self, process: asyncio.subprocess.Process, log: Path) -> str:
        try:
            async with asyncio.timeout(self.start_s):
                while process.returncode is None:
                    if url := await self._found(log):
                        return url
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            remedy = f"was not ready within {self.start_s:g} s: see {log}"
            raise NotStarted("server", process.pid, remedy) from None
        said = log.read_text(errors="replace").strip()[-_TAIL_CHARS:]
        raise NotStarted("server", process.returncode, _last_line(said))

    async def _found(self, log: Path) -> str | None:
        if self.url is not None:
            return self.url if await self._answers(self.url) else None
        match = _READY.search(log.read_text(errors="replace"))
        return match[1] if match else None

    async def _answers(self, url: str) -> bool:
        config = ClientConfig(key=self.key, connect_s=2.0, request_s=5.0, trust=self.trust)
        client = Client(Endpoint("server", url), config)
        try:
            return (await client.get("/v1/models")).head.status == 200
        except (OSError, TimeoutError) as error:
            if remedy := advice(error):  # it answers, and waiting changes nothing
                raise BenchError("--url", url, remedy) from error
            return False
        finally:
            client.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the process group to end, and make it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await process.wait()


def _last_line(said: str) -> str:
    lines: Sequence[str] = said.splitlines() or ["it said nothing"]
    return lines[-1].removeprefix("stafette: ")
