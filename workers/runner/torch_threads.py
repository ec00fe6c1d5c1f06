"""How many threads torch may use on a CPU for a step: as many as others leave it cores.

The threads of a team wait for each other many times a step. Those that wait by spinning for a
moment are twice as fast as those that sleep, as long as each has a core; where another process
wants one of them, a spinning thread starves the one that it waits for, and a step takes ten times
as long. One thread alone then loses nothing.
"""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch

_LOOK_S = 0.2  # between two looks: the kernel counts in hundredths of a second
_IDLE = 0.2  # of a core
_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)  # of a core's times: user, nice, system, irq, softirq, stolen

Times = tuple[float, float, float]  # seconds: the clock, our cores busy, busy with this process


class TorchThreads:
    """Of the thread that runs an engine's steps, forward and sampling alike.

    `read` gives the times, and None where the system does not tell.
    """

    def __init__(self, most: int, read: Callable[[], Times | None] | None = None) -> None:
        self._most = most
        self._cores = os.sched_getaffinity(0)
        self._read = read or (lambda: read_times(self._cores))
        self._last = self._read()
        self._count = most

    def fit(self) -> int:
        """Set, and return, how many the calling thread has in a step that begins now."""
        if self._most > 1 and self._last is not None:
            times = self._read() if time.monotonic() - self._last[0] >= _LOOK_S else None
            if times is not None:
                self._count = self._fitting(self._last, times)
                self._last = times
        if torch.get_num_threads() != self._count:
            torch.set_num_threads(self._count)
        return self._count

    def _fitting(self, last: Times, times: Times) -> int:
        seconds, busy, own = (now - before for now, before in zip(times, last, strict=True))
        if own < _IDLE * seconds:
            return self._count  # who used the cores while this one did not need them may be gone
        others = max(0.0, busy - own) / seconds
        return max(1, min(self._most, round(len(self._cores) - others)))


def read_times(cores: Collection[int]) -> Times | None:
    ticks = os.sysconf("SC_CLK_TCK")
    wanted = {f"cpu{core}" for core in cores}
    busy = 0
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return None
    for name, *values in map(str.split, lines):
        if name in wanted:
            busy += sum(int(values[column]) for column in _BUSY)
    own = os.times()
    return time.monotonic(), busy / ticks, own.user + own.system
