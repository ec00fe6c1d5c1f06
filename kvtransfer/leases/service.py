"""What the holders of leases may ask of their owner."""

from collections.abc import Mapping
from functools import partial

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.leases.held import EndReason
from stafette.kvtransfer.leases.lease import pack_opened
from stafette.kvtransfer.leases.table import LeaseTable
from stafette.kvtransfer.leases.ticket import LEASE_ID_END
from stafette.kvtransfer.strict import each, exact, whole
from stafette.kvtransfer.transport import Operation, PeerInfo

OPEN, RENEW, RELEASE = "lease.open", "lease.renew", "lease.release"


def operations(table: LeaseTable) -> Mapping[str, Operation]:
    return {
        OPEN: partial(_open, table),
        RENEW: partial(_renew, table),
        RELEASE: partial(_release, table),
    }


def _open(table: LeaseTable, peer: PeerInfo, payload: object) -> object:
    return pack_opened(*table.open(peer.name, peer.epoch, _lease_id(payload)))


def _renew(table: LeaseTable, peer: PeerInfo, payload: object) -> object:
    return table.renew(peer.name, each(payload, "lease ids", _lease_id))


def _release(table: LeaseTable, peer: PeerInfo, payload: object) -> object:
    match payload:
        case [lease_id, wanted]:
            wanted = exact(wanted, "wanted", bool)
            reason = EndReason.RELEASED if wanted else EndReason.REJECTED
            return table.end(_lease_id(lease_id), reason, peer.name)
    raise MalformedMessage("release", "[lease id, whether it was wanted]")


def _lease_id(value: object) -> int:
    return whole(value, "lease id", LEASE_ID_END)
