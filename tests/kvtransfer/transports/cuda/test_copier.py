"""A job on a GPU's stream: parts under way, early ends, errors, and what is given back."""

import ctypes
import threading
import time

import numpy as np
import pytest

from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import ReadJob
from stafette.kvtransfer.transports.cuda.copier import Copier, Way
from stafette.kvtransfer.transports.cuda.driver import CudaDriver, CudaError, Direction
from stafette.kvtransfer.transports.cuda.handles import Handles

SIZE = 1024
PART = 256
PATIENCE_S = 10.0
LAUNCH_FAILED = 719


class Job(ReadJob):
    def __init__(self, into: np.ndarray) -> None:
        info = RegionInfo("pool", "cuda", SIZE, SIZE, 1)
        self.local = LocalRegion(info, None, into.ctypes.data)
        self.into = Extents.of("pool", [(0, 500), (600, 300)])
        self.source = Extents.of("theirs", [(100, 500), (700, 300)])
        self.stop = ctypes.c_int32(0)
        self.advances = []
        self.moved_some = threading.Event()

    def advance(self, nbytes):
        self.advances.append(nbytes)
        self.moved_some.set()

    def finish(self, error=None): ...


class Bench:
    def __init__(self, machine, library) -> None:
        self.machine = machine
        self.library = library
        self.driver = CudaDriver(library)
        self.copier = Copier(self.driver, PART)
        self.into, self.source = machine.allocate(SIZE), machine.allocate(SIZE)
        self.source[:] = np.random.default_rng(1).integers(1, 256, SIZE)
        self.job = Job(self.into)

    def copy(self) -> bool:
        way = Way(self.source.ctypes.data, Direction.DEVICE_TO_DEVICE, 0)
        return self.copier.copy(self.job, way)

    def begin(self) -> threading.Thread:
        self.ended = []
        thread = threading.Thread(target=lambda: self.ended.append(self.copy()))
        thread.start()
        return thread

    def arrived(self) -> bool:
        expected = np.zeros(SIZE, np.uint8)
        expected[0:500], expected[600:900] = self.source[100:600], self.source[700:1000]
        return np.array_equal(self.into, expected)

    def queued(self) -> int:
        return sum(map(len, self.library.streams.values()))


@pytest.fixture
def bench(machine, make_library):
    bench = Bench(machine, make_library())
    yield bench
    assert bench.copier.close()
    bench.driver.close()
    assert not bench.library.leaks()


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_job_arrives_in_parts_that_are_counted(bench):
    assert bench.copy()

    assert bench.arrived()
    assert bench.job.advances == [256, 256, 256, 32]


def test_two_parts_are_queued_and_no_more(bench):
    bench.machine.hold()
    thread = bench.begin()
    wait_until(lambda: len(bench.library.events) == 2)
    time.sleep(0.02)

    assert bench.library.calls.count("cuEventRecord") == 2
    assert bench.job.advances == []
    bench.machine.let_go()

    thread.join(PATIENCE_S)
    assert bench.ended == [True]
    assert bench.arrived()


def test_stream_is_used_by_one_job_after_the_other(bench):
    for _ in range(3):
        assert bench.copy()

    assert bench.library.calls.count("cuStreamCreate") == 1


def test_stopped_job_queues_nothing_more_and_waits_for_what_is_queued(bench):
    bench.machine.hold()
    thread = bench.begin()
    wait_until(lambda: len(bench.library.events) == 2)

    bench.job.stop.value = 1
    time.sleep(0.05)
    assert thread.is_alive()  # what is queued may still be written
    bench.machine.let_go()

    thread.join(PATIENCE_S)
    assert bench.ended == [False]
    assert not bench.into[612:].any()  # the two parts that were queued end there
    before = bench.into.copy()
    time.sleep(0.02)
    assert np.array_equal(bench.into, before)


@pytest.mark.parametrize("call", ["cuMemcpyBatchAsync", "cuMemcpyDtoDAsync_v2", "cuEventRecord"])
def test_call_that_fails_ends_the_job_and_leaves_nothing(machine, make_library, call):
    bench = Bench(machine, make_library(batches=call == "cuMemcpyBatchAsync"))
    bench.library.fails[call] = LAUNCH_FAILED
    bench.job.into = Extents.of("pool", [(i * 8, 8) for i in range(100)])
    bench.job.source = bench.job.into

    with pytest.raises(CudaError, match=call):
        bench.copy()

    assert bench.library.calls.count("cuStreamSynchronize") == 1
    bench.library.fails.clear()
    assert bench.copy()  # on another stream
    assert bench.copier.close()
    bench.driver.close()
    assert not bench.library.leaks()


def test_device_that_is_lost_ends_the_job(machine, make_library):
    bench = Bench(machine, make_library())
    bench.library.fails |= {"cuStreamSynchronize": LAUNCH_FAILED, "cuEventQuery": LAUNCH_FAILED}

    with pytest.raises(CudaError, match="cuStreamSynchronize"):
        bench.copy()

    assert bench.copier.close()


def test_closed_copier_tells_whether_a_job_still_runs(bench):
    bench.machine.hold()
    thread = bench.begin()
    wait_until(lambda: len(bench.library.events) == 2)

    assert not bench.copier.close()
    bench.machine.let_go()

    thread.join(PATIENCE_S)
    assert bench.ended == [True]
    with pytest.raises(CudaError, match="closed"):
        bench.copy()


# Handles


@pytest.fixture
def handle(machine, driver):
    return driver.export(machine.allocate(SIZE).ctypes.data, 0)


def test_allocation_is_opened_once_and_closed_by_its_last_holder(handle, make_library):
    library = make_library()
    handles = Handles(CudaDriver(library))

    addresses = {handles.take(handle, 0) for _ in range(3)}
    for _ in range(2):
        handles.give_back(handle, 0)

    assert len(addresses) == 1
    assert len(library.opened) == 1
    handles.give_back(handle, 0)
    assert not library.opened
    assert library.calls.count("cuIpcOpenMemHandle_v2") == 1


def test_each_device_opens_it_for_itself(handle, make_library):
    library = make_library()
    handles = Handles(CudaDriver(library))

    for device in (0, 1):
        handles.take(handle, device)
    handles.give_back(handle, 0)

    assert [device for _, device in library.opened] == [1]


def test_allocation_that_cannot_be_closed_is_forgotten_and_logged(handle, make_library, caplog):
    library = make_library()
    handles = Handles(CudaDriver(library))
    handles.take(handle, 0)
    library.fails["cuIpcCloseMemHandle"] = LAUNCH_FAILED

    handles.give_back(handle, 0)

    assert "stays open" in caplog.text
    assert not handles._open
