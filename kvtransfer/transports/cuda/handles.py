"""The allocations of other processes that are open here, each once for each of our devices.

Several regions may lie in one allocation, as torch's allocator cuts them; CUDA opens a handle once.
"""

import logging
import threading

from stafette.kvtransfer.transports.cuda.driver import CudaDriver, CudaError

_log = logging.getLogger(__name__)


class Handles:
    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._open: dict[tuple[bytes, int], tuple[int, int]] = {}  # -> address, holders
        self._lock = threading.Lock()

    def take(self, handle: bytes, device: int) -> int:
        """Return the address of the allocation, until `give_back` was called as often."""
        key = handle, device
        with self._lock:
            address, holders = self._open.get(key) or (self._driver.open(handle, device), 0)
            self._open[key] = address, holders + 1
        return address

    def give_back(self, handle: bytes, device: int) -> None:
        key = handle, device
        with self._lock:
            address, holders = self._open[key]
            if holders > 1:
                self._open[key] = address, holders - 1
                return
            del self._open[key]
            try:
                self._driver.close_handle(address, device)
            except CudaError as error:  # it is forgotten all the same
                _log.error("an allocation of another process stays open: %s", error)
