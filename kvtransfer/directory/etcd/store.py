"""Records as keys of an etcd, each bound to a lease of its publisher.

A claim's hold is its lease's id: so every step may be repeated, the key itself tells whose it is,
and to revoke the lease removes the key only while it is ours.
"""

import math
import time
from contextlib import suppress
from typing import Any

import grpc  # type: ignore[import-untyped]

from stafette.kvtransfer.directory.etcd import messages
from stafette.kvtransfer.directory.etcd.client import EtcdClient, Refused
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.etcd.feed import EtcdFeed
from stafette.kvtransfer.directory.etcd.messages import pb
from stafette.kvtransfer.directory.records import decode, may_replace
from stafette.kvtransfer.directory.store import Claim, Store
from stafette.kvtransfer.errors import MalformedMessage, NameTaken

_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_EXISTS = grpc.StatusCode.FAILED_PRECONDITION
_RETRY_S = 0.05


class EtcdStore(Store):
    def __init__(self, cluster: str, config: EtcdConfig | None = None) -> None:
        config = config or EtcdConfig()
        self._client = EtcdClient(config)
        self._prefix = f"{config.prefix}/{cluster}/peers/".encode()
        self._last_feed: EtcdFeed | None = None
        self.place = self._client.place

    def put(self, claim: Claim, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self._lease(claim, deadline)
        revision = 0  # of no key
        while (held := self._put_over(revision, claim, deadline)) is not None:
            epoch = _epoch_of(held)
            if epoch is not None and not may_replace(claim.epoch, epoch, held.lease == claim.hold):
                raise NameTaken(claim.name, claim.epoch, epoch)
            revision = held.mod_revision

    def renew(self, claim: Claim, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        if not self._keep_alive(claim, deadline):
            return False
        key = self._key(claim.name)
        ours = pb.Compare(target=messages.COMPARE_LEASE, key=key, lease=claim.hold)
        answer = self._client.call(messages.TXN, pb.TxnRequest(compare=[ours]), deadline)
        return bool(answer.succeeded)

    def remove(self, claim: Claim, timeout_s: float) -> None:
        request = pb.LeaseRevokeRequest(ID=claim.hold)
        deadline = time.monotonic() + timeout_s
        with suppress(Refused):  # it is gone already
            self._client.call(messages.REVOKE, request, deadline, (_NOT_FOUND,))

    def read(self, name: str, timeout_s: float) -> bytes | None:
        request = pb.RangeRequest(key=self._key(name))
        answer = self._client.call(messages.RANGE, request, time.monotonic() + timeout_s)
        return answer.kvs[0].value if answer.kvs else None

    def follow(self, silence_s: float, timeout_s: float) -> EtcdFeed:
        last = self._last_feed
        feed = EtcdFeed(self._client, self._prefix, silence_s, time.monotonic() + timeout_s)
        # An etcd that came back empty, or from a backup, counts from less.
        feed.rewound = last is not None and feed.revision < last.revision
        self._last_feed = feed
        return feed

    def close(self) -> None:
        self._client.close()

    def _lease(self, claim: Claim, deadline: float) -> None:
        """Have the claim's lease, new or renewed. An expired one is there for a moment yet."""
        request = pb.LeaseGrantRequest(ID=claim.hold, TTL=math.ceil(claim.ttl_s))
        while True:
            try:
                self._client.call(messages.GRANT, request, deadline, (_EXISTS,))
                return
            except Refused:
                if self._keep_alive(claim, deadline):
                    return
            time.sleep(_RETRY_S)

    def _keep_alive(self, claim: Claim, deadline: float) -> bool:
        request = pb.LeaseKeepAliveRequest(ID=claim.hold)
        return bool(self._client.call(messages.KEEP_ALIVE, request, deadline).TTL > 0)

    def _put_over(self, revision: int, claim: Claim, deadline: float) -> Any | None:
        """Write over what has that revision; else return what is there, and leave it so."""
        key = self._key(claim.name)
        same = pb.Compare(target=messages.COMPARE_MOD_REVISION, key=key, mod_revision=revision)
        put = pb.PutRequest(key=key, value=claim.value, lease=claim.hold)
        request = pb.TxnRequest(
            compare=[same],
            success=[pb.RequestOp(request_put=put)],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key))],
        )
        try:
            answer = self._client.call(messages.TXN, request, deadline, (_NOT_FOUND,))
        except Refused:  # the lease has expired just now
            self._lease(claim, deadline)
            return pb.KeyValue(mod_revision=revision)
        if answer.succeeded:
            return None
        found = answer.responses[0].response_range.kvs
        return found[0] if found else pb.KeyValue()

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()


def _epoch_of(held: Any) -> int | None:
    """Return the epoch of what a key holds; None when that is no peer."""
    try:
        return decode(held.value).epoch
    except MalformedMessage:
        return None
