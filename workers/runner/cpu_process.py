"""What torch on a CPU wants of its process: one team of threads, and memory that stays.

On two cores the first made decode steps of 64 sequences of a small model a quarter shorter, the
second prompts a tenth. Torch does neither on its own.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 1 << 30


def in_passing_thread(call: Callable[[], T]) -> T:
    """Return what `call` does, run on a thread that has ended by then.

    Each thread that runs a parallel loop of OpenMP gets a team of its own, and keeps it. With more
    threads in teams than cores libgomp's hardly wait for each other before they sleep, and every
    small loop pays for waking them. So only the thread that runs the steps may keep a team.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = Thread(target=run, name="stafette-build", daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    It gives large tensors back to the system at once, and each step pays for clean pages again.
    What is kept is what the largest step so far needed beside weights and KV.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # it is glibc
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
