"""Real workers in processes that can be killed, stopped and drained, and are quickly made."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

PROCESS = Path(__file__).with_name("worker_process.py")
TOKEN = "the cluster's token"
KEY = "the cluster's key"
PATIENCE_S = 60.0


class WorkerProcess:
    """`harmed` says that a signal was sent to it."""

    def __init__(self, name: str, pid: int, address: str) -> None:
        self.name = name
        self.pid = pid
        self.address = address
        self.harmed = False
        self.status: Future[int] = Future()  # of its exit

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    async def wait(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.wrap_future(self.status)

    def _signal(self, number: int) -> None:
        self.harmed = True
        if not self.status.done():
            os.kill(self.pid, number)


class Nursery:
    """Forks workers off one process. Options are those of `worker_process.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ready: dict[str, Future[WorkerProcess]] = {}
        self._living: dict[int, WorkerProcess] = {}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    async def make(self, name: str, **options: Any) -> WorkerProcess:
        """Start a worker, whose role is in the first letter of its name; return when it serves."""
        self._ready[name] = ready = Future[WorkerProcess]()
        told = {"name": name, "role": role_of(name), "token": TOKEN} | options
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.wrap_future(ready)

    async def make_frontend(self, name: str, worker: WorkerProcess, count: int) -> WorkerProcess:
        """Start a frontend; return when a worker has begun so many long answers for it."""
        return await self.make(name, worker=worker.name, asks=worker.address, count=count)

    def close(self) -> None:
        for worker in self._living.values():
            worker.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._listener.join(PATIENCE_S)
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "name" in told:
                worker = self._living[told["pid"]] = WorkerProcess(**told)
                ready = self._ready.pop(told["name"], None)
                if ready is not None and ready.set_running_or_notify_cancel():
                    ready.set_result(worker)  # else it came too late for whoever waited
            elif told["pid"] in self._living:
                self._living[told["pid"]].status.set_result(told["status"])


def role_of(name: str) -> str:
    return {"p": "prefill", "d": "decode"}.get(name[0], "both")
