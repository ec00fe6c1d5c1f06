"""A child process that loads once and then answers questions: one JSON line in, one out.

While others are measured it is stopped (SIGSTOP), so that its idle threads take no core.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_GRACE_S = 10.0
_TAIL_CHARS = 600


class ChildFailed(Exception):
    """A child that died, answered with an error, or did not answer in time."""

    def __init__(self, name: str, doing: str, reason: str) -> None:
        super().__init__(name, doing, reason)
        self.name = name
        self.doing = doing
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} failed at {self.doing}: {self.reason}"


class Child:
    """Leads a process group of its own; its stderr goes to a log file."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.perf_counter()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        self._unread = b""
        self._closed = False

    def ask(self, question: Mapping[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
        """Return the answer; ChildFailed says who, what and how long."""
        assert self._process.stdin is not None
        self.resume()
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
        except OSError as error:
            raise ChildFailed(self.name, doing, self._why_gone()) from error
        answer: dict[str, Any] = json.loads(self._read_line(timeout_s, doing))
        if "error" in answer:
            raise ChildFailed(self.name, doing, str(answer["error"]))
        return answer

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Return what its processes hold together; a page that two share counts once."""
        leader = psutil.Process(self._process.pid)
        family = [leader, *leader.children(recursive=True)]
        return sum(process.memory_full_info().pss for process in family)

    def close(self) -> None:
        """End the whole group. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for number in (signal.SIGCONT, signal.SIGTERM):
            self._signal(number)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self._signal(signal.SIGKILL)
        self._process.wait(_GRACE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read_line(self, timeout_s: float, doing: str) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            ready = select.select([self._process.stdout], [], [], max(0.0, left))[0]
            if not ready:
                raise ChildFailed(self.name, doing, f"no answer within {timeout_s:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 65_536)
            if not piece:
                raise ChildFailed(self.name, doing, self._why_gone())
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _why_gone(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        tail = self._log.read_text(errors="replace")[-_TAIL_CHARS:].strip()
        return f"it ended with status {self._process.returncode}; {self._log} ends: {tail}"
