"""Measures one system: a reader in this process, and its pool's owner in another."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from statistics import median

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.protocol import Answer, Contender, Lists, OwnerEnd, ReaderEnd, Run

_ANSWER_S = 60.0
_END_S = 5.0
_WARM_UP_S = 0.05  # the process was stopped while others were measured
_LEAST = 5  # lists, however long they take


class WrongBytes(Exception):
    """What arrived is not what was asked for."""


class OwnerProcess:
    """Runs `Owner` of a module in a process of its own; answers questions by a pipe."""

    def __init__(self, module: str, option: str) -> None:
        context = multiprocessing.get_context("spawn")  # peers' threads do not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_own, args=(module, option, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.hello = self._receive()

    def ask(self, question: object) -> object:
        self._pipe.send(("ask", question))
        return self._receive()

    def cpu_s(self) -> float:
        self._pipe.send(("cpu", None))
        return float(self._receive())  # type: ignore[arg-type]

    def close(self) -> None:
        self._pipe.close()  # the owner ends when it sees that
        self._process.join(_END_S)
        self._process.kill()
        self._process.join()

    def _receive(self) -> object:
        if not self._pipe.poll(_ANSWER_S):
            raise TimeoutError(f"the owner's process did not answer within {_ANSWER_S:.0f} s")
        answer, error = self._pipe.recv()
        if error:
            raise RuntimeError(f"the owner's process: {error}")
        return answer


class Pair(Contender):
    """A reader and its owner; without an owner, a reader that has both pools itself."""

    def __init__(
        self,
        reader: ReaderEnd,
        owner: OwnerProcess | None,
        pool_bytes: int = pools.POOL_BYTES,
    ) -> None:
        self._reader = reader
        self._owner = owner
        self._pool = pools.allocate(pool_bytes)
        if owner is None:
            reader.start(self._pool, None, lambda question: None)
        else:
            reader.start(self._pool, owner.hello, owner.ask)

    @classmethod
    def of(cls, module: str, option: str, reader: ReaderEnd) -> "Pair":
        return cls(reader, OwnerProcess(module, option))

    def measure(self, run: Run) -> Answer:
        lists = pools.lists(run, len(self._pool))
        self._reader.prepare(run)
        half = len(lists) // 2
        self._time(lists[half:], run.block_bytes, min(_WARM_UP_S, run.seconds))
        before = self._cpu_s()
        times = self._time(lists[:half], run.block_bytes, run.seconds)
        spent = self._cpu_s() - before
        self._verify(lists[-1], run)
        gigabytes = run.nbytes * len(times) / 1e9
        note = self._reader.note
        return Answer(median(times), min(times), len(times), spent / gigabytes, note)

    def close(self) -> None:
        self._reader.close()
        if self._owner is not None:
            self._owner.close()

    def _time(self, lists: list[Lists], block_bytes: int, seconds: float) -> list[float]:
        """Return how long each list took, no list twice."""
        read, clock, times = self._reader.read, time.perf_counter, list[float]()
        end = clock() + seconds
        for into, source in lists:
            began = clock()
            if began >= end and len(times) >= _LEAST:
                break
            read(into, source, block_bytes)
            times.append(clock() - began)
        return times

    def _verify(self, pair: Lists, run: Run) -> None:
        self._pool[:] = 0
        self._reader.read(*pair, run.block_bytes)
        wrong = pools.wrong_bytes(self._pool, *pair, run.block_bytes)
        if wrong:
            raise WrongBytes(wrong)

    def _cpu_s(self) -> float:
        return _own_cpu_s() + (self._owner.cpu_s() if self._owner else 0.0)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _own(module: str, option: str, pipe: Connection) -> None:
    """Be the owner's process, until the reader's end of the pipe is closed."""
    owner: OwnerEnd = import_module(module).Owner(option)
    pool = owner.allocate()
    pools.fill(pool)
    _reply(pipe, lambda: owner.start(pool))
    while True:
        try:
            kind, question = pipe.recv()
        except EOFError:
            break
        if kind == "cpu":
            _reply(pipe, _own_cpu_s)
        else:
            _reply(pipe, lambda asked=question: owner.answer(asked))  # type: ignore[misc]
    owner.close()
    os._exit(0)  # a peer's threads are not waited for


def _reply(pipe: Connection, call: Callable[[], object]) -> None:
    try:
        answer, error = call(), ""
    except Exception as failure:  # the edge of this process: the reader's is told
        answer, error = None, f"{type(failure).__name__}: {failure}"
    pipe.send((answer, error))
