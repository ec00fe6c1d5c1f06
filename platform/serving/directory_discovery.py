"""Learns from a directory (etcd) which workers there are; works with and without Ray."""

import asyncio
import logging
from contextlib import suppress

from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.directory.registration import Registration
from stafette.kvtransfer.directory.registry import open_directory
from stafette.kvtransfer.directory.watches import Left, PeerEvent
from stafette.platform.config import DiscoveryConfig
from stafette.platform.serving.membership import Membership

_log = logging.getLogger(__name__)

_KIND, _ADDRESS = "kind", "address"  # labels
_WORKER = "worker"


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

    def start(self, membership: Membership) -> None:
        loop = asyncio.get_running_loop()

        def tell(event: PeerEvent) -> None:  # in the watch's thread
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._take, membership, event)

        self._directory.watch(tell, labels={_KIND: _WORKER})

    async def close(self) -> None:
        await asyncio.to_thread(self._directory.close)

    def _take(self, membership: Membership, event: PeerEvent) -> None:
        if isinstance(event, Left):
            self._addresses.pop(event.name, None)
        else:
            self._addresses[event.name] = event.record.labels[_ADDRESS]
        _log.info("workers: %s", ", ".join(sorted(self._addresses)) or "none")
        membership.take(self._addresses)
