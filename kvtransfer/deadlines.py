"""Ends what is overdue: one thread that looks at everything under way every few milliseconds."""

import logging
import threading
import time

from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transfer import Transfer

_log = logging.getLogger(__name__)
_TICK_S = 0.02


class Watchdog:
    """Knows the transfers that are not settled, and ends those whose deadline has passed."""

    def __init__(self, name: str) -> None:
        self._unsettled: dict[Transfer, Extents | None] = {}  # what it may write into
        self._some = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"deadlines-{name}", daemon=True)
        self._thread.start()

    def watch(self, transfer: Transfer, into: Extents | None = None) -> None:
        """Take in a transfer, and the memory of this process that it writes into."""
        self._unsettled[transfer] = into
        transfer.on_settled(self._forget)
        if not self._some.is_set():
            self._some.set()

    def unsettled(self) -> list[Transfer]:
        """Return what may still write into its destination, the overdue ones included."""
        return list(self._unsettled)

    def into(self, region: str) -> dict[Transfer, Extents]:
        """Return those that may write into a region, and where."""
        found = list(self._unsettled.items())
        return {t: into for t, into in found if into is not None and into.region == region}

    def close(self) -> None:
        self._closed = True
        self._some.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._some.wait()
            now = time.monotonic()
            for transfer in self.unsettled():
                if now >= transfer.deadline and transfer.error is None:
                    self._expire(transfer)
            time.sleep(_TICK_S)
            self._rest()

    def _expire(self, transfer: Transfer) -> None:
        try:
            transfer.expire()
        except Exception:  # a transport's bug: the other transfers have deadlines too
            _log.exception("transfer %d with %s could not be ended", transfer.id, transfer.peer)

    def _rest(self) -> None:
        """Sleep until something is posted; what was posted meanwhile keeps us awake."""
        if not self._unsettled and not self._closed:
            self._some.clear()
            if self._unsettled or self._closed:
                self._some.set()

    def _forget(self, transfer: Transfer) -> None:
        self._unsettled.pop(transfer, None)
