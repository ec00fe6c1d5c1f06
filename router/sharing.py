"""Routers tell each other what they book: else two of them send everything to the same place.

It is best effort. Each change is one message; a lost one is made good by the next summary, which a
router sends now and then and which stands for all that it has booked. A router's id names one life
of it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from stafette.router.errors import UnknownReservation
from stafette.router.fleet import Fleet
from stafette.router.reservations import Change, Computed, Freed, Reserved, Summary


@dataclass(slots=True)
class SharingCounters:
    applied: int = 0
    repeated: int = 0  # known already
    unknown: int = 0  # of requests that were never told


class Sharing:
    """Books changes in a fleet's loads, and passes on those of this router."""

    def __init__(self, publish: Callable[[Change], None] | None = None) -> None:
        self.counters = SharingCounters()
        self.own: dict[str, Reserved] = {}  # this router's requests
        self._computed: set[str] = set()  # of those
        self._remote: dict[str, dict[str, Reserved]] = {}  # router -> its requests
        self._publish = publish

    def book(self, fleet: Fleet, change: Reserved | Computed | Freed, now: float) -> None:
        """Book a change of this router's own, and tell the others."""
        match change:
            case Reserved(request_id):
                self.own[request_id] = change
            case Computed(request_id):
                self._computed.add(request_id)
            case Freed(request_id):
                self._computed.discard(request_id)
        _apply(fleet, self.own[change.request_id], change, now)
        if isinstance(change, Freed):
            del self.own[change.request_id]
        if self._publish is not None:
            self._publish(change)

    def summary(self) -> Summary:
        return Summary(tuple(self.own.values()), frozenset(self._computed))

    def apply(self, fleet: Fleet, router_id: str, change: Change, now: float) -> None:
        """Book another router's change; what cannot be booked is counted."""
        known = self._remote.setdefault(router_id, {})
        match change:
            case Summary():
                self._replace(fleet, router_id, change, now)
            case Reserved(request_id) if request_id in known:
                self.counters.repeated += 1
            case Reserved(request_id):
                known[request_id] = Reserved(f"{router_id}/{request_id}", change.stays)
                self._apply_known(fleet, known[request_id], change, now)
            case Computed(request_id) | Freed(request_id) if request_id not in known:
                self.counters.unknown += 1
            case Computed(request_id):
                self._apply_known(fleet, known[request_id], change, now)
            case Freed(request_id):
                self._apply_known(fleet, known.pop(request_id), change, now)

    def forget_router(self, fleet: Fleet, router_id: str, now: float) -> None:
        for reserved in self._remote.pop(router_id, {}).values():
            _apply(fleet, reserved, Freed(""), now)

    def _replace(self, fleet: Fleet, router_id: str, summary: Summary, now: float) -> None:
        """Free what the summary does not name, book what was missed."""
        named = {reserved.request_id: reserved for reserved in summary.reserved}
        known = self._remote[router_id]
        for request_id in [name for name in known if name not in named]:
            self.apply(fleet, router_id, Freed(request_id), now)
        for request_id in [name for name in named if name not in known]:
            self.apply(fleet, router_id, named[request_id], now)
        for request_id in summary.computed & named.keys():
            self.apply(fleet, router_id, Computed(request_id), now)

    def _apply_known(self, fleet: Fleet, reserved: Reserved, change: Change, now: float) -> None:
        self.counters.applied += 1
        _apply(fleet, reserved, change, now)


def _apply(fleet: Fleet, reserved: Reserved, change: Change, now: float) -> None:
    """Do to each target's load what the change says; a target that is gone has none."""
    for place, (target, stay) in enumerate(reserved.stays):
        member = fleet.members.get(target)
        if member is None:
            continue
        load, name = member.load, reserved.request_id
        match change:
            case Reserved():
                load.reserve(name, stay, now)
            case Computed() if place == 0:
                load.first_token(name, now)
            case _:
                # Its half may be over already, or the target began anew meanwhile.
                with suppress(UnknownReservation):
                    load.free(name, now)
