"""The processes of one node that count something, each behind a socket in a folder they share.

Whoever connects to such a socket is told what the process counts, and nothing else is said. A
process that has died leaves a socket that refuses; whoever finds one takes it away.
"""

import asyncio
import os
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from stafette.platform.frontend.errors import InvalidSetting

_MAX_BYTES = 64 << 20  # of one process
_YOUNG_S = 3_600.0
_TELL_S = 10.0  # for whoever asked to read what is told
_MAX_PATH_BYTES = 84  # of the folder: a socket's path has 107 at most


def node_folder(token: bytes, fleet: str) -> Path:
    """Return the folder of a fleet on this node; only this user can look into it."""
    base = Path(tempfile.gettempdir()) / f"stafette-{os.getuid()}"
    own = base / blake2b(token + fleet.encode(), digest_size=6).hexdigest()
    for folder in (base, own):
        _make(folder)
    if len(os.fsencode(own)) > _MAX_PATH_BYTES:
        remedy = f"makes sockets' paths too long: choose one with {_MAX_PATH_BYTES} bytes at most"
        raise InvalidSetting("TMPDIR", str(own), remedy)
    os.utime(own)
    _sweep(base)
    return own


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        remedy = f"cannot be made, and processes find each other there: {error.strerror}"
        raise InvalidSetting("TMPDIR", str(folder), remedy) from None
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InvalidSetting("TMPDIR", str(folder), "is not this user's alone: remove it")


def _sweep(base: Path) -> None:
    """Take away what fleets have left that were killed whole, but nothing that is being made."""
    for folder in base.glob("*/"):
        with suppress(OSError):  # another process sweeps as well
            if time.time() - folder.stat().st_mtime < _YOUNG_S:
                continue
            for path in folder.iterdir():
                if _refuses(path):
                    path.unlink()
            folder.rmdir()  # unless somebody lives there


def _refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


class Member:
    """This process among them."""

    def __init__(self, folder: Path, render: Callable[[], bytes]) -> None:
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._render = render
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        new = self.path.with_suffix(".new")
        listener.bind(str(new))
        listener.listen()
        new.rename(self.path)  # only now: who finds it can connect
        self._server = await asyncio.start_unix_server(self._tell, sock=listener)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self.path.unlink(missing_ok=True)

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._render())
        try:
            async with asyncio.timeout(_TELL_S):
                await writer.drain()
        except (ConnectionError, TimeoutError):
            writer.transport.abort()  # whoever asked has gone, or does not read
        else:
            writer.close()


async def ask(paths: Sequence[Path], timeout_s: float) -> list[bytes | None]:
    """Return what each of them tells; None of one that does not, b"" of one that is dead."""
    return await asyncio.gather(*(_ask(path, timeout_s) for path in paths))


async def _ask(path: Path, timeout_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_BYTES)
            try:
                return await reader.read(-1)
            finally:
                writer.close()
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
        return b""
    except (OSError, TimeoutError):
        return None
