"""A double of CUDA's driver: GPUs whose memory is the host's, shared by the libraries of a test.

It keeps the rules: calls need a current context, a handle is opened once for each device, work on a
stream is done in order and, if a test holds the GPUs, not before it lets them go.
"""

import ctypes
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from stafette.kvtransfer.transports.cuda.driver import HANDLE_BYTES, UUID_BYTES, CudaDriver

INVALID_VALUE, INVALID_CONTEXT, ALREADY_MAPPED, NOT_READY, LAUNCH_FAILED = 1, 201, 208, 600, 719
PATIENCE_S = 10.0


class Machine:
    """The GPUs of a host, and what is allocated there."""

    def __init__(self, num_gpus: int = 2) -> None:
        self.uuids = [bytes([65 + gpu]) * UUID_BYTES for gpu in range(num_gpus)]
        self.memory: dict[int, np.ndarray] = {}
        self.handles: dict[bytes, int] = {}
        self.peers = True  # whether GPUs read each other
        self.exportable = True
        self.held = False
        self.changed = threading.Condition()

    def allocate(self, nbytes: int) -> np.ndarray:
        array = np.zeros(nbytes, np.uint8)
        self.memory[array.ctypes.data] = array
        return array

    def base_of(self, address: int) -> int | None:
        found = (b for b, a in self.memory.items() if b <= address < b + len(a))
        return next(found, None)

    def hold(self) -> None:
        self.held = True

    def let_go(self) -> None:
        with self.changed:
            self.held = False
            self.changed.notify_all()


class Call:
    """A function of a library; ctypes' own have `argtypes` too."""

    argtypes = None

    def __init__(self, library, name, run) -> None:
        self.library, self.name, self.run = library, name, run

    def __call__(self, *arguments):
        self.library.calls.append(self.name)
        assert len(arguments) == len(self.argtypes)
        if self.name in self.library.fails:
            return self.library.fails[self.name]
        return self.run(*arguments) or 0


class FakeLibcuda:
    """One process's library."""

    def __init__(self, machine: Machine, visible=None, batches: bool = True) -> None:
        self.machine = machine
        self.visible = list(range(len(machine.uuids))) if visible is None else visible
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}
        self.opened: dict[tuple[int, int], int] = {}
        self.streams: dict[int, list] = {}
        self.events: dict[int, tuple[int, int]] = {}
        self.retained: dict[int, int] = {}
        self.ids = itertools.count(10_000)
        self.current = threading.local()
        for name in dir(self):
            if name.startswith("do_cu"):
                setattr(self, name[3:], Call(self, name[3:], getattr(self, name)))
        if not batches:
            del self.cuMemcpyBatchAsync

    def leaks(self) -> dict:
        kept = SimpleNamespace(**vars(self))
        found = {"opened": kept.opened, "streams": kept.streams, "events": kept.events}
        found["contexts"] = {device: n for device, n in kept.retained.items() if n}
        return {name: value for name, value in found.items() if value}

    def device_now(self) -> int | None:
        stack = getattr(self.current, "stack", [])
        return stack[-1] if stack else None

    def run_due(self) -> None:
        with self.machine.changed:
            if self.machine.held:
                return
            for work in self.streams.values():
                for index, each in enumerate(work):
                    if each is not None:
                        each()
                        work[index] = None

    def queue(self, stream, work) -> int:
        if self.device_now() is None:
            return INVALID_CONTEXT
        self.streams[stream].append(work)
        self.run_due()
        return 0

    # The calls

    def do_cuInit(self, flags): ...

    def do_cuGetErrorName(self, code, found):
        found._obj.value = f"CUDA_ERROR_{code}".encode()

    def do_cuDeviceGetCount(self, found):
        found._obj.value = len(self.visible)

    def do_cuDeviceGet(self, found, number):
        if not 0 <= number < len(self.visible):
            return INVALID_VALUE
        found._obj.value = 100 + number

    def do_cuDeviceGetUuid_v2(self, found, device):
        uuid = self.machine.uuids[self.visible[device - 100]]
        ctypes.memmove(ctypes.addressof(found._obj), uuid, UUID_BYTES)

    def do_cuDeviceCanAccessPeer(self, found, device, other):
        found._obj.value = self.machine.peers

    def do_cuDevicePrimaryCtxRetain(self, found, device):
        self.retained[device - 100] = self.retained.get(device - 100, 0) + 1
        found._obj.value = 200 + device - 100

    def do_cuDevicePrimaryCtxRelease_v2(self, device):
        assert self.retained[device - 100] > 0
        self.retained[device - 100] -= 1

    def do_cuCtxPushCurrent_v2(self, context):
        if not self.retained.get(context - 200):
            return INVALID_CONTEXT
        self.current.stack = [*getattr(self.current, "stack", []), context - 200]

    def do_cuCtxPopCurrent_v2(self, found):
        self.current.stack = self.current.stack[:-1]

    def do_cuMemGetAddressRange_v2(self, base, nbytes, address):
        found = self.machine.base_of(address)
        if self.device_now() is None or found is None:
            return INVALID_VALUE
        base._obj.value, nbytes._obj.value = found, len(self.machine.memory[found])

    def do_cuIpcGetMemHandle(self, handle, base):
        if not self.machine.exportable or base not in self.machine.memory:
            return INVALID_VALUE
        packed = base.to_bytes(8, "little").rjust(HANDLE_BYTES, b"h")
        self.machine.handles[packed] = base
        ctypes.memmove(ctypes.addressof(handle._obj), packed, HANDLE_BYTES)

    def do_cuIpcOpenMemHandle_v2(self, found, handle, flags):
        base = self.machine.handles.get(bytes(handle))
        if base is None or flags != 1 or self.device_now() is None:
            return INVALID_VALUE
        if (base, self.device_now()) in self.opened:
            return ALREADY_MAPPED
        self.opened[base, self.device_now()] = base
        found._obj.value = base

    def do_cuIpcCloseMemHandle(self, address):
        if self.opened.pop((address, self.device_now()), None) is None:
            return INVALID_VALUE

    def do_cuStreamCreate(self, found, flags):
        assert flags == 1  # on the default stream's mercy otherwise
        found._obj.value = next(self.ids)
        self.streams[found._obj.value] = []

    def do_cuStreamSynchronize(self, stream):
        with self.machine.changed:
            assert self.machine.changed.wait_for(lambda: not self.machine.held, PATIENCE_S)
        self.run_due()

    def do_cuStreamDestroy_v2(self, stream):
        assert not any(self.streams.pop(stream))

    def do_cuEventCreate(self, found, flags):
        found._obj.value = next(self.ids)
        self.events[found._obj.value] = (0, 0)

    def do_cuEventRecord(self, event, stream):
        self.events[getattr(event, "value", event)] = stream, len(self.streams[stream])

    def do_cuEventQuery(self, event):
        self.run_due()
        stream, place = self.events[event]
        return NOT_READY if any(self.streams[stream][:place]) else 0

    def do_cuEventDestroy_v2(self, event):
        del self.events[getattr(event, "value", event)]

    def do_cuMemcpyDtoDAsync_v2(self, into, source, length, stream):
        for address in (into, source):
            if self.machine.base_of(address) is None:
                return INVALID_VALUE
        return self.queue(stream, lambda: ctypes.memmove(into, source, length))

    def do_cuMemcpyDtoHAsync_v2(self, into, source, length, stream):
        if self.machine.base_of(source) is None or self.machine.base_of(into) is not None:
            return INVALID_VALUE
        return self.queue(stream, lambda: ctypes.memmove(into, source, length))

    def do_cuMemcpyHtoDAsync_v2(self, into, source, length, stream):
        if self.machine.base_of(into) is None or self.machine.base_of(source) is not None:
            return INVALID_VALUE
        return self.queue(stream, lambda: ctypes.memmove(into, source, length))

    def do_cuMemcpyBatchAsync(
        self, into, source, lengths, count, attributes, indices, num_attributes, failed, stream
    ):
        assert (num_attributes, indices._obj.value) == (1, 0)
        assert attributes._obj.source_order == 1
        words = [(ctypes.c_uint64 * count).from_address(place) for place in (into, source, lengths)]
        for triple in zip(*map(list, words), strict=True):
            code = self.do_cuMemcpyDtoDAsync_v2(*triple, stream)
            if code:
                return code


class FakeTensor:
    """Contiguous memory of a GPU, as the registrar sees it."""

    def __init__(self, array: np.ndarray, device: int = 0) -> None:
        self.array = array
        self.device = SimpleNamespace(type="cuda", index=device)

    def data_ptr(self):
        return self.array.ctypes.data

    def is_contiguous(self):
        return True

    def numel(self):
        return len(self.array)

    def element_size(self):
        return 1


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make_library(machine):
    def make(**options) -> FakeLibcuda:
        return FakeLibcuda(machine, **options)

    return make


@pytest.fixture
def driver(make_library) -> CudaDriver:
    return CudaDriver(make_library())


@pytest.fixture(scope="session")
def fake_tensor():
    return FakeTensor
