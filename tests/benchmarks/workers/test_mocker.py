"""The capacity of a process of mock workers is measured on workers that work."""

from benchmarks.workers.mocker import decoding, virtual


def test_decoding_and_many_workers_are_measured_by_their_cpu_time():
    assert decoding(50) > 0
    assert virtual(5, 20) > 0
