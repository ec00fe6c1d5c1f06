"""The twin itself: a fleet, what is asked of it, and a clock that jumps from event to event.

    twin = Twin(config, make_workload(config.workload))
    twin.on_tick = scale  # called every tick_s, with the twin and the time
    results = twin.run()

What a scaler may do: `observe`, `fleet.set_replicas`, `fleet.release`, `fleet.set_role`.
"""

from collections.abc import Callable, Iterator

from stafette.platform.twin.arrivals import Arrival, Workload
from stafette.platform.twin.config import KEY, FaultConfig, TwinConfig
from stafette.platform.twin.dispatching import Dispatch
from stafette.platform.twin.fleet import Fleet
from stafette.platform.twin.results import Results
from stafette.platform.twin.tally import Tally, Window
from stafette.platform.twin.timeline import Timeline
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter
from stafette.workers.mocker.virtual import VirtualTime

OnTick = Callable[["Twin", float], None]


class Twin:
    """Run once."""

    def __init__(
        self, config: TwinConfig, workload: Workload, on_tick: OnTick | None = None
    ) -> None:
        self.config = config
        self.workload = workload
        self.on_tick = on_tick
        self.time = VirtualTime()
        hashers = Hashers(KEY, config.block_size)
        self.router = KvRouter(hashers, config.router_config(), self.time)
        self.fleet = Fleet(config, self.time, self.router, hashers)
        self.tally = Tally(config.slo)
        self.dispatch = Dispatch(
            config, self.time, self.router, self.fleet, PromptHasher(hashers), self.tally
        )
        self.timeline = Timeline(config.bin_s)
        self._coming: Iterator[Arrival] = iter(())
        self._all_came = False
        self.dispatch.on_idle = self._look_for_end

    def run(self) -> Results:
        """Serve the whole workload; return what came of it."""
        self.begin()
        self.serve(self.workload)
        self.timeline.mark(self)
        self.router.close()
        self.fleet.close()
        return Results.of(self)

    def begin(self) -> None:
        """Let the fleet be there, and time begin. For whoever serves one workload after another."""
        self.fleet.begin()
        for fault in self.config.faults:
            self._plan(fault)
        self._beat()
        self._tick()
        self._mark()

    def serve(self, workload: Workload) -> None:
        """Let time go on until a workload is over, and all is answered."""
        self.workload = workload
        self._coming, self._all_came = workload.arrivals(), False
        self._next_arrival()
        self.time.at(workload.duration_s, self._look_for_end)
        self.time.run()

    def observe(self) -> Window:
        """Return what happened since the last call."""
        self.fleet.settle()
        return self.tally.take_window(self.time.now)

    def _look_for_end(self) -> None:
        """It is over when nothing is under way, and nothing is to come."""
        idle = self._all_came and not self.dispatch.num_open
        if idle and self.time.now >= self.workload.duration_s:
            self.time.stop()

    def _next_arrival(self) -> None:
        """Plan one at a time: a workload may be long."""
        arrival = next(self._coming, None)
        if arrival is None:
            self._all_came = True
            return
        self.dispatch.ask(arrival)
        self.time.at(arrival.at_s, self._next_arrival)

    def _beat(self) -> None:
        self.fleet.beat()
        self._again(self.config.beat_s, self._beat)

    def _tick(self) -> None:
        if self.on_tick is not None:
            self.on_tick(self, self.time.now)
            self._again(self.config.tick_s, self._tick)

    def _mark(self) -> None:
        self.timeline.mark(self)
        self._again(self.config.bin_s, self._mark)

    def _again(self, after_s: float, call: Callable[[], None]) -> None:
        self.time.at(self.time.now + after_s, call)

    def _plan(self, fault: FaultConfig) -> None:
        fleet = self.fleet
        if fault.kill is not None:
            whom, noticed_s = fault.kill, fault.noticed_s
            self.time.at(fault.at_s, lambda: fleet.kill(whom, noticed_s))
        elif fault.slow is not None:
            slow = fault.slow
            self.time.at(fault.at_s, lambda: fleet.slow(slow, fault.factor, fault.for_s))
        else:
            assert fault.start_s is not None, "a fault is one of three"
            start_s = fault.start_s
            self.time.at(fault.at_s, lambda: fleet.set_start(start_s, fault.pool))
