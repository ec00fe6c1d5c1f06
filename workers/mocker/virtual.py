"""Many mock workers on one virtual clock: time goes from one thing that happens to the next."""

from collections.abc import Callable
from functools import partial

from stafette.kvtransfer.event_log import EventLog
from stafette.workers.mocker.agenda import Agenda, Appointment
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.core import Mocker, OnStretch
from stafette.workers.mocker.news import News, Wire
from stafette.workers.request import OutputDelta

OnDeltas = Callable[[list[OutputDelta]], None]


class VirtualTime:
    """A clock: call it for the time. `at` plans, `run` lets happen what is planned."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._agenda = Agenda()

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, action: Callable[[], None]) -> Appointment:
        return self._agenda.at(max(when, self.now), action)

    def run(self, until: float | None = None) -> None:
        """Go on until nothing is left to happen, or until then, or until `stop`."""
        self._stopped = False
        while (due := self._agenda.next_at) is not None and (until is None or due <= until):
            self.now = due
            self._agenda.run(due)
            if self._stopped:
                return
        if until is not None:
            self.now = max(self.now, until)

    def stop(self) -> None:
        """Let `run` return when all is done that happens at this time."""
        self._stopped = True


class VirtualCluster:
    """Mock workers that hear of each other after the latency of the one that speaks."""

    def __init__(self, time: VirtualTime) -> None:
        self.time = time
        self.workers: dict[str, Mocker] = {}
        self._armed: dict[str, tuple[float, Appointment]] = {}
        self._epochs: dict[str, int] = {}

    def add(
        self, config: MockerConfig, on_deltas: OnDeltas, on_stretch: OnStretch | None = None
    ) -> Mocker:
        """Let a worker live; its answers come to `on_deltas`.

        Steps between which nothing happens are told to `on_stretch`, if given: some time later,
        many at once, and at a small part of the cost.
        """
        name = config.name
        epoch = self._epochs[name] = self._epochs.get(name, 0) + 1
        log = EventLog(name, epoch, clock=lambda: mocker.now())
        mocker = Mocker(config, self.time, log, _VirtualWire(self, config), on_stretch)
        mocker.on_wake = partial(self._arm, mocker, on_deltas)
        self.workers[name] = mocker
        return mocker

    def kill(self, name: str) -> None:
        """End a worker at once, with all that it does; the others hear of it."""
        del self.workers[name]
        armed = self._armed.pop(name, None)
        if armed is not None:
            armed[1].cancel()
        for other in self.workers.values():
            other.lost(name)

    def tell(self, sender: MockerConfig, peer: str, news: News) -> bool:
        if peer not in self.workers:
            return False
        latency_s = sender.profile.transfer_latency_ms / 1e3 / sender.speedup
        self.time.at(self.time.now + latency_s, partial(self._pass_on, sender.name, peer, news))
        return True

    def _pass_on(self, sender: str, peer: str, news: News) -> None:
        mocker = self.workers.get(peer)
        if mocker is not None:
            mocker.hear(sender, news)

    def _arm(self, mocker: Mocker, on_deltas: OnDeltas) -> None:
        """Plan a worker's next step, unless that is planned already."""
        name, due = mocker.config.name, mocker.next_step_at()
        if due is None or self.workers.get(name) is not mocker:
            return
        armed = self._armed.get(name)
        if armed is not None:
            if armed[0] <= due:
                return
            armed[1].cancel()
        step = partial(self._step, mocker, on_deltas)
        self._armed[name] = (due, self.time.at(due, step))

    def _step(self, mocker: Mocker, on_deltas: OnDeltas) -> None:
        del self._armed[mocker.config.name]
        deltas = mocker.step(self.time.now)
        self._arm(mocker, on_deltas)
        if deltas:
            on_deltas(deltas)


class _VirtualWire(Wire):
    def __init__(self, cluster: VirtualCluster, config: MockerConfig) -> None:
        self._cluster = cluster
        self._config = config

    def tell(self, peer: str, news: News) -> bool:
        return self._cluster.tell(self._config, peer, news)

    def probe(self, peer: str) -> None:
        if peer not in self._cluster.workers:
            own = self._cluster.workers[self._config.name]
            self._cluster.time.at(self._cluster.time.now, partial(own.lost, peer))
