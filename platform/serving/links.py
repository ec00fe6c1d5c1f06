"""Keeps a stream to everybody in a set of addresses, and connects again where one breaks."""

import asyncio
import logging
from collections.abc import Mapping

from stafette.kvtransfer.errors import KvTransferError, MalformedMessage
from stafette.router.errors import RouterError
from stafette.workers.errors import WorkerLost
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.config import ServiceConfig

_log = logging.getLogger(__name__)

_RECONNECT_S = 0.05  # after a stream was lost; doubles up to the next
_MAX_RECONNECT_S = 2.0


class Links:
    """Used by one event loop. What a new stream means is a subclass's: `_enter` and `_leave`."""

    def __init__(self, own_name: str, service: ServiceConfig) -> None:
        self.changed = asyncio.Event()  # somebody came or went; whoever waits clears it
        self._own_name = own_name
        self._service = service  # the way to them; its host and port mean nothing here
        self._clients: dict[str, WorkerClient] = {}
        self._keepers: dict[str, tuple[str, asyncio.Task[None]]] = {}  # with the address

    @property
    def clients(self) -> Mapping[str, WorkerClient]:
        return self._clients

    def client(self, name: str) -> WorkerClient:
        client = self._clients.get(name)
        if client is None:
            raise WorkerLost("worker", name, "it is not connected")
        return client

    def follow(self, addresses: Mapping[str, str]) -> None:
        """Take the set of those that there should be now, by name."""
        for name, (address, keeper) in list(self._keepers.items()):
            if addresses.get(name) != address:
                keeper.cancel()
                del self._keepers[name]
        for name, address in addresses.items():
            if name not in self._keepers:
                keeper = asyncio.create_task(self._keep(name, address), name=f"keep-{name}")
                self._keepers[name] = (address, keeper)

    async def close(self) -> None:
        keepers = [keeper for _, keeper in self._keepers.values()]
        self._keepers.clear()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    def _enter(self, name: str, client: WorkerClient) -> None:
        """Somebody is connected; RouterError or KvTransferError: it is of no use."""

    def _leave(self, name: str, client: WorkerClient) -> None:
        """It, or our way to it, is gone."""

    async def _keep(self, name: str, address: str) -> None:
        """Be connected; when that breaks, connect again, to whatever life is there then."""
        pause_s = _RECONNECT_S
        while True:
            ended = asyncio.Event()
            try:
                client = await self._connect(name, address, ended)
            except (WorkerLost, RouterError, MalformedMessage) as error:
                # One that is not there may come; one that does not fit was deployed wrongly.
                level = logging.INFO if isinstance(error, WorkerLost) else logging.ERROR
                _log.log(level, "%s at %s is not to be had: %s", name, address, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_RECONNECT_S)
                continue
            pause_s = _RECONNECT_S
            try:
                await ended.wait()
            finally:
                self._forget(name, client)
                await client.close()

    async def _connect(self, name: str, address: str, ended: asyncio.Event) -> WorkerClient:
        client = await WorkerClient.connect(
            name, address, self._own_name, self._service, lambda *_: ended.set()
        )
        self._clients[name] = client
        try:
            self._enter(name, client)
        except (RouterError, KvTransferError):
            del self._clients[name]
            await client.close()
            raise
        self.changed.set()
        _log.info("%s is there, in epoch %d", name, client.epoch)
        return client

    def _forget(self, name: str, client: WorkerClient) -> None:
        client.on_load = _nothing
        if self._clients.get(name) is client:
            del self._clients[name]
        self._leave(name, client)
        self.changed.set()
        _log.info("%s is gone: %s", name, client.lost or "nobody wants it any more")


def _nothing() -> None:
    pass
