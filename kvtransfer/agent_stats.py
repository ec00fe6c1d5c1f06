"""What an agent has done so far, and what it is doing."""

from collections.abc import Mapping
from dataclasses import dataclass

from stafette.kvtransfer.control.counters import Counters
from stafette.kvtransfer.leases.table import LeaseCounters
from stafette.kvtransfer.telemetry import TransferCounters


@dataclass(frozen=True, slots=True)
class AgentStats:
    transfers: Mapping[str, TransferCounters]  # by transport
    unsettled: int  # transfers that may still write
    leases: LeaseCounters  # of what is granted here
    control: Counters  # of the connections of peers
    notified: int  # notifications that peers acknowledged
    not_notified: int  # and those that they did not in time
    repeated_notifications: int  # that came a second time, and were not delivered again
