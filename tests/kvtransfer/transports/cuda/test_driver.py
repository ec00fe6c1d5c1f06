"""The calls of CUDA's driver, on a double of its library: what each is given, and what it says."""

import ctypes

import numpy as np
import pytest

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.transports.cuda import driver as cuda_driver
from stafette.kvtransfer.transports.cuda.driver import (
    Copies,
    CopyAttributes,
    CudaDriver,
    CudaError,
    Direction,
)

KIB = 1024
LAUNCH_FAILED = 719


def copies(direction, into, source, ranges) -> Copies:
    """Pair (to, from, length) with the beginnings of two memories."""
    table = np.array(ranges, np.uint64)
    return Copies(
        direction,
        table[:, 0] + np.uint64(into.ctypes.data),
        table[:, 1] + np.uint64(source.ctypes.data),
        table[:, 2],
    )


def filled(array):
    array[:] = np.random.default_rng(1).integers(1, 256, len(array))
    return array


def wait(driver, event, device=0):
    while not driver.has_come(event, device):
        pass


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize(
    "direction",
    [Direction.DEVICE_TO_DEVICE, Direction.DEVICE_TO_HOST, Direction.HOST_TO_DEVICE],
)
def test_ranges_are_copied_in_every_direction(machine, make_library, batches, direction):
    library = make_library(batches=batches)
    driver = CudaDriver(library)
    on_gpu, on_host = machine.allocate(64 * KIB), np.zeros(64 * KIB, np.uint8)
    into = on_host if direction is Direction.DEVICE_TO_HOST else on_gpu
    source = on_host if direction is Direction.HOST_TO_DEVICE else machine.allocate(64 * KIB)
    filled(source)
    stream = driver.new_stream(0)

    driver.copy(copies(direction, into, source, [(0, 100, 7), (500, 0, 64)]), stream, 0)
    wait(driver, driver.mark(stream, 0))

    expected = np.zeros(64 * KIB, np.uint8)
    expected[0:7], expected[500:564] = source[100:107], source[0:64]
    assert np.array_equal(into, expected)
    one_call = batches and direction is Direction.DEVICE_TO_DEVICE
    assert library.calls.count("cuMemcpyBatchAsync") == int(one_call)
    driver.end_stream(stream, 0)
    driver.close()
    assert not library.leaks()


def test_event_comes_when_all_that_was_queued_is_done(machine, driver):
    into, source = machine.allocate(KIB), filled(machine.allocate(KIB))
    stream = driver.new_stream(0)
    machine.hold()
    driver.copy(copies(Direction.DEVICE_TO_DEVICE, into, source, [(0, 0, KIB)]), stream, 0)
    event = driver.mark(stream, 0)

    assert not driver.has_come(event, 0)
    assert not into.any()
    machine.let_go()
    assert driver.has_come(event, 0)
    assert np.array_equal(into, source)


def test_thread_has_the_context_that_it_had_before(machine, make_library):
    library = make_library()
    driver = CudaDriver(library)
    array = machine.allocate(KIB)

    driver.allocation(array.ctypes.data, 1)
    library.fails["cuMemGetAddressRange_v2"] = LAUNCH_FAILED
    with pytest.raises(CudaError):
        driver.allocation(array.ctypes.data, 1)

    assert library.device_now() is None


def test_address_is_told_with_the_allocation_that_it_is_in(machine, driver):
    array = machine.allocate(KIB)

    assert driver.allocation(array.ctypes.data + 100, 0) == (array.ctypes.data, KIB)


def test_exported_allocation_is_opened_by_another_process(machine, driver, make_library):
    array = machine.allocate(KIB)
    other = CudaDriver(make_library())

    handle = driver.export(array.ctypes.data, 0)
    address = other.open(handle, 1)

    assert address == array.ctypes.data
    with pytest.raises(CudaError, match="cuIpcOpenMemHandle_v2: CUDA_ERROR_208"):
        other.open(handle, 1)
    other.close_handle(address, 1)


CALLS = {
    "cuInit": lambda library, machine: CudaDriver(library),
    "cuDeviceGetCount": lambda library, machine: CudaDriver(library),
    "cuDeviceGetUuid_v2": lambda library, machine: CudaDriver(library),
    "cuDeviceGet": lambda library, machine: CudaDriver(library),
}


@pytest.mark.parametrize("call", CALLS)
def test_call_that_fails_at_the_start_is_named(make_library, machine, call):
    library = make_library()
    library.fails[call] = LAUNCH_FAILED

    with pytest.raises(CudaError, match=f"{call}: CUDA_ERROR_719"):
        CALLS[call](library, machine)


LATER = {
    "cuDevicePrimaryCtxRetain": lambda d, a: d.new_stream(0),
    "cuCtxPushCurrent_v2": lambda d, a: d.new_stream(0),
    "cuDeviceCanAccessPeer": lambda d, a: d.can_access(0, 1),
    "cuMemGetAddressRange_v2": lambda d, a: d.allocation(a.ctypes.data, 0),
    "cuIpcGetMemHandle": lambda d, a: d.export(a.ctypes.data, 0),
    "cuIpcOpenMemHandle_v2": lambda d, a: d.open(b"x" * 64, 0),
    "cuIpcCloseMemHandle": lambda d, a: d.close_handle(1, 0),
    "cuStreamCreate": lambda d, a: d.new_stream(0),
    "cuStreamSynchronize": lambda d, a: d.synchronize(d.new_stream(0), 0),
    "cuStreamDestroy_v2": lambda d, a: d.end_stream(d.new_stream(0), 0),
    "cuEventCreate": lambda d, a: d.mark(d.new_stream(0), 0),
    "cuEventRecord": lambda d, a: d.mark(d.new_stream(0), 0),
    "cuEventQuery": lambda d, a: d.has_come(d.mark(d.new_stream(0), 0), 0),
    "cuMemcpyDtoDAsync_v2": lambda d, a: copy_one(d, a, 1),
    "cuMemcpyBatchAsync": lambda d, a: copy_one(d, a, 2),
}


def copy_one(driver, array, count):
    ranges = [(8 * i, 100 + 8 * i, 8) for i in range(count)]
    job = copies(Direction.DEVICE_TO_DEVICE, array, array, ranges)
    driver.copy(job, driver.new_stream(0), 0)


@pytest.mark.parametrize("call", LATER)
def test_call_that_fails_is_named_and_leaves_no_event(make_library, machine, call):
    library = make_library()
    driver = CudaDriver(library)
    library.fails[call] = LAUNCH_FAILED

    with pytest.raises(CudaError, match=f"{call}: CUDA_ERROR_719"):
        LATER[call](driver, machine.allocate(KIB))

    assert not library.events
    assert library.device_now() is None


def test_every_function_that_is_called_has_a_signature(make_library):
    """ctypes would pass an address as an int of 32 bits otherwise."""
    library = make_library()
    CudaDriver(library)

    unsigned = [name for name, call in vars(library).items() if signature(call) is None]

    assert unsigned == []


def signature(call):
    return getattr(call, "argtypes", "no function")


def test_structures_have_the_sizes_of_the_c_interface():
    assert ctypes.sizeof(cuda_driver.IpcHandle) == 64
    assert ctypes.sizeof(cuda_driver.Uuid) == 16
    assert ctypes.sizeof(CopyAttributes) == 24


def test_without_a_driver_the_need_is_told(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)

    with pytest.raises(InvalidValue, match="needs an NVIDIA GPU and its driver"):
        cuda_driver.load()


def test_driver_without_a_gpu_is_none(monkeypatch, make_library):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: make_library(visible=[]))

    with pytest.raises(InvalidValue, match="there is no GPU"):
        cuda_driver.load()
