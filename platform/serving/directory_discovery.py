"""Learns from a directory (etcd) which workers there are; works with and without Ray."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.directory.registration import Registration
from stafette.kvtransfer.directory.registry import open_directory
from stafette.kvtransfer.directory.watches import Left, PeerEvent
from stafette.platform.config import DiscoveryConfig
from stafette.platform.serving.frontend_peers import FrontendPeers
from stafette.platform.serving.membership import Membership

_log = logging.getLogger(__name__)

_KIND, _ADDRESS = "kind", "address"  # labels
_WORKER, _FRONTEND = "worker", "frontend"
_NOTHING = b"-"  # a frontend has no transfer agent


def open_workers_directory(config: DiscoveryConfig) -> Directory:
    return open_directory("etcd", config.directory, config.etcd.make())


def publish_worker(
    directory: Directory, name: str, epoch: int, address: str, metadata: bytes
) -> Registration:
    """Let frontends find a worker for as long as its process lives."""
    record = PeerRecord(epoch, metadata, {_KIND: _WORKER, _ADDRESS: address})
    return directory.publish(name, record)


class DirectoryDiscovery:
    """While the directory is not to be reached, the workers known last are kept."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._addresses: dict[str, str] = {}

    def start(self, membership: Membership, frontends: FrontendPeers | None) -> None:
        loop = asyncio.get_running_loop()

        def tell(take: Callable[[PeerEvent], None], event: PeerEvent) -> None:
            """Called in a watch's thread."""
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(take, event)

        take = partial(self._take, membership)
        self._directory.watch(partial(tell, take), labels={_KIND: _WORKER})
        if frontends is None:
            return

        def meet(event: PeerEvent) -> None:
            if not isinstance(event, Left):
                frontends.meet([event.record.labels[_ADDRESS]])

        self._directory.watch(partial(tell, meet), labels={_KIND: _FRONTEND})
        labels = {_KIND: _FRONTEND, _ADDRESS: frontends.address}
        record = PeerRecord(time.time_ns(), _NOTHING, labels)
        self._directory.publish(frontends.gossip.router_id, record)

    async def close(self) -> None:
        await asyncio.to_thread(self._directory.close)

    def _take(self, membership: Membership, event: PeerEvent) -> None:
        if isinstance(event, Left):
            self._addresses.pop(event.name, None)
        else:
            self._addresses[event.name] = event.record.labels[_ADDRESS]
        _log.info("workers: %s", ", ".join(sorted(self._addresses)) or "none")
        membership.take(self._addresses)
