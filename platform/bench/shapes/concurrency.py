"""So many requests at once, the next as soon as one is answered."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

from stafette.platform.bench.load import Lengths, Level
from stafette.platform.bench.shapes.drawing import LEAST_REQUESTS, check_levels, single_requests
from stafette.platform.frontend.errors import InvalidSetting

DEFAULT_CONCURRENCIES = (1, 2, 5, 10, 50, 100, 250)  # those of Dynamo's benchmarks


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyShape:
    concurrencies: tuple[int, ...] = DEFAULT_CONCURRENCIES

    axis: ClassVar[str] = "requests at once"

    def __post_init__(self) -> None:
        check_levels("--concurrencies", self.concurrencies)

    def levels(self, lengths: Lengths, requests: int | None, seed: int) -> Sequence[Level]:
        found = []
        for limit in self.concurrencies:
            count = requests_at(limit, requests)
            name = f"c{limit}"
            found.append(
                Level(
                    name=name,
                    load=limit,
                    limit=limit,
                    num_requests=count,
                    conversations=partial(single_requests, lengths, count, f"{seed} {name}"),
                    aiperf=("--concurrency", str(limit)),
                )
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "concurrency"} | asdict(self)


def requests_at(limit: int, requests: int | None) -> int:
    """Return how many requests a level has: those asked for, or three rounds."""
    if requests is None:
        return max(LEAST_REQUESTS, 3 * limit)
    if requests < limit:
        remedy = f"is fewer than the {limit} that run at once: the level would never be reached"
        raise InvalidSetting("--requests", requests, remedy)
    return requests
