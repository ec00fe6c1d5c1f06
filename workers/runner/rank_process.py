"""The parent's view of a rank: what is at the other end of a socket, here a child process."""

import contextlib
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from typing import Any, Protocol

from stafette.workers import errors
from stafette.workers.errors import EngineDead
from stafette.workers.runner.collectives import LOOPBACK
from stafette.workers.runner.link import Link

_STDERR = 2
_SEND_S = 30.0  # a rank reads at once, even in a step; one that does not is stuck
_GRACE_S = 1.0  # from the end of a rank's socket to the end of its process


class Rank(ABC):
    """Does what it is told, wherever it runs. Its errors name it."""

    def __init__(self, rank: int, link: Link) -> None:
        self.rank = rank
        self._link = link

    def send(self, message: dict[str, Any]) -> None:
        try:
            self._link.send(message, _SEND_S)
        except EOFError as error:
            raise self.death("its socket is closed") from error

    def receive(self, timeout_s: float) -> Any:
        """Return the rank's answer, or raise the error that it answers with."""
        try:
            message = self._link.receive(timeout_s)
        except EOFError as error:
            raise self.death("its socket is closed") from error
        except TimeoutError as error:
            raise self.death(f"no answer in {timeout_s:g} s") from error
        if "error" in message:
            kind, field, value, remedy = message["error"]
            raise getattr(errors, kind)(f"rank {self.rank}: {field}", value, remedy)
        return message.get("value")

    @abstractmethod
    def has_ended(self, within_s: float = 0.0) -> bool:
        """Return whether it is gone, or goes within that time."""

    @abstractmethod
    def death(self, otherwise: str) -> EngineDead:
        """Return an error that says how the rank ended, or else what it failed to do."""

    @abstractmethod
    def stop(self) -> None:
        """End it. Safe to call twice."""


class RankSource(Protocol):
    """Starts the ranks of an engine, all but the first, which runs where it is called."""

    host: str  # at which the ranks of all nodes reach this process
    num_nodes: int  # that have equally many ranks, in their order

    def start(self, size: int, timeout_s: float) -> list[Rank]:
        """Return ranks 1 to `size` - 1."""


class LocalRanks:
    """All ranks on this host."""

    host = LOOPBACK
    num_nodes = 1

    def start(self, size: int, timeout_s: float) -> list[Rank]:
        return [RankProcess(rank) for rank in range(1, size)]


class RankProcess(Rank):
    """Starts its process when made."""

    def __init__(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stafette.workers.runner.rank", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
            )
        super().__init__(rank, Link(ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self, within_s: float = 0.0) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.poll() is not None

    def death(self, otherwise: str) -> EngineDead:
        how = otherwise
        if self.has_ended(_GRACE_S):
            code = self._process.returncode
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return EngineDead(f"tensor parallel rank {self.rank}", how, "start the engine again")

    def stop(self) -> None:
        """Ask, then insist."""
        with contextlib.suppress(EOFError):
            self._link.send({"op": "close"}, _GRACE_S)
        self._link.close()
        if not self.has_ended(_GRACE_S):
            self._process.kill()
            self._process.wait()
