"""A handler that keeps the books, and a worker process that publishes what it is told to."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stafette.kvtransfer.event_log import CachedBlocks
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber

DEADLINE_S = 20.0
WORKER = Path(__file__).with_name("worker_process.py")
VLLM_WORKER = Path(__file__).with_name("vllm_process.py")


class Books:
    """Applies what it is told, and checks that no batch is missing in between."""

    def __init__(self, exact: bool = True) -> None:
        self.calls = []  # numbers of batches, "snapshot", "reset", "lost"
        self.changed = threading.Condition()
        self._exact = exact  # the worker has snapshots: no beginning may be missing
        self._cached = {}
        self._last = {}  # worker -> (epoch, seq)

    def on_batch(self, batch):
        with self.changed:
            cached = self.of(batch.worker_id)
            if batch.snapshot:
                cached = CachedBlocks()
            else:
                self._check_order(batch)
            for event in batch.events:
                cached.apply(event)
            self._cached[batch.worker_id] = cached
            self._last[batch.worker_id] = (batch.epoch, batch.seq)
            self._note("snapshot" if batch.snapshot else batch.seq)

    def on_reset(self, worker_id):
        self._forget(worker_id, "reset")

    def on_lost(self, worker_id):
        self._forget(worker_id, "lost")

    def of(self, worker_id: str = "w") -> CachedBlocks:
        return self._cached.get(worker_id, CachedBlocks())

    def await_that(self, condition) -> None:
        """Wait until it holds, which only a call can change."""
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S), self.calls[-20:]

    def _check_order(self, batch):
        last = self._last.get(batch.worker_id)
        if last is not None or self._exact:
            assert (batch.epoch, batch.seq) == (last[0], last[1] + 1) if last else batch.seq == 1

    def _forget(self, worker_id, name):
        with self.changed:
            self._cached.pop(worker_id, None)
            self._last.pop(worker_id, None)
            self._note(name)

    def _note(self, name):
        self.calls.append(name)
        self.changed.notify_all()


class WorkerProcess:
    """Speaks to worker_process.py or vllm_process.py, line by line."""

    def __init__(
        self, epoch: int = 1, address: str = "", replay_address: str = "", script=WORKER, **options
    ):
        settings = {"epoch": epoch, "address": address, "replay_address": replay_address}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script), json.dumps(settings | options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address, self.replay_address = json.loads(self._process.stdout.readline())

    def ask(self, *question):
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def cached(self) -> set[bytes]:
        return {bytes.fromhex(each) for each in self.ask("cached")}

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def make_books():
    return Books


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def start_worker():
    started = []

    def start(*args, **options) -> WorkerProcess:
        started.append(WorkerProcess(*args, **options))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture(params=["lists", "maps"])
def start_vllm(start_worker, request):
    """Start a stand-in for a stock vLLM worker, of the older form or the newer one."""

    def start(*args, **options) -> WorkerProcess:
        return start_worker(*args, script=VLLM_WORKER, is_new=request.param == "maps", **options)

    return start


@pytest.fixture
def subscribe():
    subscribers = []

    def start(*args, **options) -> EventSubscriber:
        subscribers.append(EventSubscriber(*args, **options))
        return subscribers[-1]

    yield start
    for subscriber in subscribers:
        subscriber.close()
        assert not subscriber._thread.is_alive()
        assert not subscriber._delivery.thread.is_alive()
