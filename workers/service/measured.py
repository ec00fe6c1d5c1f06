"""What a worker has counted since its start, and how it is now: what its metrics are made of."""

from collections.abc import Mapping
from dataclasses import dataclass

from stafette.kvtransfer.histogram import Histogram
from stafette.kvtransfer.leases.table import LeaseCounters
from stafette.kvtransfer.telemetry import TransferCounters
from stafette.kvtransfer.tiers.stats import StoreStats
from stafette.workers.handover.exports import ExportCounters
from stafette.workers.handover.imports import ImportCounters
from stafette.workers.request_times import RequestTimes
from stafette.workers.stats import EngineStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    role: str
    draining: bool
    alive: bool
    engine: EngineStats
    step_seconds: Histogram
    times: RequestTimes | None  # None: simulated workers do not measure them
    imports: ImportCounters
    exports: ExportCounters
    transfers: Mapping[str, TransferCounters]  # that this worker has read, by transport
    unsettled: int  # of them, that may still write
    leases: LeaseCounters  # of what it lends
    refused_peers: Mapping[str, int]  # connections, by why
    tiers: StoreStats | None  # None: it has none
