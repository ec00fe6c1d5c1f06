"""The parent's view of a rank: a child process at the other end of a socket."""

import contextlib
import signal
import socket
import subprocess
import sys
from typing import Any

from stafette.workers import errors
from stafette.workers.errors import EngineDead
from stafette.workers.runner.link import Link

_STDERR = 2
_SEND_S = 30.0  # a rank reads at once, even in a step; one that does not is stuck
_GRACE_S = 1.0  # from the end of a rank's socket to the end of its process


class RankProcess:
    """Starts its process when made. Its errors name the rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stafette.workers.runner.rank", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
            )
        self._link = Link(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

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

    def has_ended(self, within_s: float = 0.0) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.poll() is not None

    def death(self, otherwise: str) -> EngineDead:
        """Return an error that says how the rank ended, or else what it failed to do."""
        how = otherwise
        if self.has_ended(_GRACE_S):
            code = self._process.returncode
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return EngineDead(f"tensor parallel rank {self.rank}", how, "start the engine again")

    def stop(self) -> None:
        """End the process: ask, then insist. Safe to call twice."""
        with contextlib.suppress(EOFError):
            self._link.send({"op": "close"}, _GRACE_S)
        self._link.close()
        if not self.has_ended(_GRACE_S):
            self._process.kill()
            self._process.wait()
