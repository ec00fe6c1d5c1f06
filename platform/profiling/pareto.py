"""How much a device gives at which speed for each user: the best of all splits and loads."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from stafette.platform.profiling.recommending import Candidate, Kind, Load, Search

Front = list[tuple[float, float]]  # tokens/s of a user, output tokens/s of a device
_LEVELS = tuple(level / 12 for level in range(1, 13))  # of the most that a split serves
_HALVINGS = 8
_MOST_RATE = 1e6


def fronts(search: Search, devices: int) -> dict[str, Front]:
    """Return the front of each kind and tensor parallelism; the promised TTFT is kept on all."""
    points: dict[str, Front] = {}
    names: dict[Kind, str] = {"together": "aggregated", "apart": "disaggregated"}
    for candidate in _all(search, devices):
        series = f"{names[candidate.kind]}, tp {candidate.engine.tensor_parallel}"
        points.setdefault(series, []).extend(_curve(search, candidate))
    return {series: front(own) for series, own in sorted(points.items()) if own}


def front(points: Iterable[tuple[float, float]]) -> Front:
    """Return those that no other beats in both, by rising speed."""
    found: Front = []
    for speed, throughput in sorted(points, reverse=True):
        if not found or throughput > found[-1][1]:
            found.append((speed, throughput))
    return found[::-1]


def place(candidate: Candidate, load: Load) -> tuple[float, float]:
    """Return where a fleet lies under a load."""
    return 1e3 / candidate.speeds.itl_ms, load.rate * load.output_tokens / candidate.devices


def _all(search: Search, devices: int) -> Iterator[Candidate]:
    """Yield every split; where prompts are apart from answers, the first budget stands for all."""
    seen: set[int] = set()
    for engine in search.engines:
        for candidate in search.every_split(engine, devices):
            if candidate.kind == "together" or engine.tensor_parallel not in seen:
                yield candidate
        seen.add(engine.tensor_parallel)


def _curve(search: Search, candidate: Candidate) -> Front:
    most, found = _most_rate(search, candidate), []
    for level in _LEVELS:
        again = search.of(candidate.engine, candidate.split, most * level)
        if _keeps(search, again):
            found.append(place(again, replace(search.load, rate=most * level)))
    return found


def _most_rate(search: Search, candidate: Candidate) -> float:
    """Return the rate beyond which a split holds no more, or prompts wait for too long."""

    def serves(rate: float) -> bool:
        return _keeps(search, search.of(candidate.engine, candidate.split, rate))

    low, high = 0.0, search.load.rate
    while serves(high) and high < _MOST_RATE:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if serves(middle) else (low, middle)
    return low or high


def _keeps(search: Search, candidate: Candidate) -> bool:
    return candidate.speeds.fits and candidate.ttft_ms <= search.slo.ttft_ms
