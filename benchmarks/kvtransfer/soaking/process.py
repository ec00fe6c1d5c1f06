"""An owner's process as the driver sees it: may be killed, stopped, started at any time."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_ANSWER_S = 30.0
_END_S = 10.0
_SRC = Path(__file__).resolve().parents[3] / "src"


class OwnerGone(Exception):
    """The process was killed while it was asked."""


class OwnerProcess:
    """Lives again and again under one name. Any thread may ask; one at a time is answered."""

    def __init__(self, name: str, ttl_s: float, log: Path) -> None:
        self.name = name
        self.lives = 0
        self._ttl_s = ttl_s
        self._log = log
        self._lock = threading.Lock()
        self.metadata = b""
        self._start()

    def ask(self, *question: object) -> Any:
        with self._lock:
            try:
                self._pipe_in.write(json.dumps(question).encode() + b"\n")
                return json.loads(self._line())
            except (OSError, ValueError) as error:
                raise OwnerGone(self.name) from error

    def stop(self, seconds: float) -> None:
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill it, whatever it does, and let it live again."""
        self._process.kill()
        with self._lock:
            self._end()
            self._start()

    def close(self) -> None:
        self._process.kill()
        with self._lock:
            self._end()

    def _start(self) -> None:
        self.lives += 1
        module = "benchmarks.kvtransfer.soaking.owner"
        with self._log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, self.name, str(self._ttl_s), str(self.lives)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": str(_SRC)},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe_in, self._pipe_out = self._process.stdin, self._process.stdout
        self._unread = b""
        self.metadata = bytes.fromhex(json.loads(self._line()))

    def _end(self) -> None:
        self._process.wait(_END_S)
        for pipe in (self._pipe_in, self._pipe_out):
            with suppress(OSError):
                pipe.close()

    def _line(self) -> bytes:
        deadline = time.monotonic() + _ANSWER_S
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if not select.select([self._pipe_out], [], [], max(0.0, left))[0]:
                raise OSError(f"no answer of {self.name} within {_ANSWER_S:g} s")
            piece = os.read(self._pipe_out.fileno(), 1 << 16)
            if not piece:
                raise OSError(f"{self.name} has ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line
