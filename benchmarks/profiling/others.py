"""How much of the machine was taken meanwhile by processes that are none of ours."""

import psutil


class Others:
    """Made when something begins; `share` tells of the time since then."""

    def __init__(self) -> None:
        self._own, self._busy, self._all = _own_s(), *_machine_s()

    def share(self) -> float:
        """Return the part of all cores' time that others took."""
        busy, everything = _machine_s()
        taken = busy - self._busy - (_own_s() - self._own)
        return max(0.0, taken) / max(everything - self._all, 1e-9)


def _machine_s() -> tuple[float, float]:
    """Return busy time and all time, of all cores."""
    times = psutil.cpu_times()
    everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return everything - times.idle - getattr(times, "iowait", 0.0), everything


def _own_s() -> float:
    """Return the time of this process and of all that it has started."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
