"""How the run went, bin by bin: replicas, load, and whether the promises were kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stafette.platform.twin.twin import Twin


@dataclass(frozen=True, slots=True)
class Moment:
    """States as of `at_s`; counts since the moment before."""

    at_s: float
    replicas: Mapping[str, Mapping[str, int]]  # by pool and state
    roles: Mapping[str, int]  # of those that serve
    waiting: int  # requests that no worker has
    prefilling: int  # and before their first token
    decoding: int
    arrivals: int
    output_tokens: int


class Timeline:
    def __init__(self, bin_s: float) -> None:
        self.bin_s = bin_s
        self.moments: list[Moment] = []
        self._before = (0, 0)

    def mark(self, twin: "Twin") -> None:
        tally, fleet = twin.tally, twin.fleet
        if self.moments and self.moments[-1].at_s >= twin.time.now:
            return
        fleet.settle()
        roles = dict.fromkeys(("prefill", "decode", "both"), 0)
        for replica in fleet.replicas.values():
            roles[replica.role] += replica.state == "ready"
        legs = twin.dispatch.legs.values()
        prefilling = sum(leg.waits_for_first for leg in legs)
        arrivals, tokens = self._before
        self._before = tally.arrivals, tally.output_tokens
        self.moments.append(
            Moment(
                at_s=twin.time.now,
                replicas={name: fleet.counts(name) for name in fleet.pools},
                roles=roles,
                waiting=twin.dispatch.num_waiting,
                prefilling=prefilling,
                decoding=len(legs) - prefilling,
                arrivals=tally.arrivals - arrivals,
                output_tokens=tally.output_tokens - tokens,
            )
        )
