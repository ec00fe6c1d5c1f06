"""What all connections to one peer share."""

from dataclasses import dataclass

from stafette.kvtransfer.transport import PeerControl
from stafette.kvtransfer.transports.tcp_config import TcpConfig
from stafette.kvtransfer.transports.tcp_counters import TcpTally


@dataclass(frozen=True, slots=True)
class Way:
    peer: str
    control: PeerControl
    config: TcpConfig
    tally: TcpTally
    max_requests: int  # the lower limit of both sides
