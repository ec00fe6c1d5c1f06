"""A step of torch uses the cores that others leave, and memory that it has had before."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from stafette.workers import LLM, SamplingParams
from stafette.workers.runner.cpu_process import in_passing_thread
from stafette.workers.runner.torch_threads import TorchThreads, read_times
from stafette.workers.sampling.sampler import Sampler

CORES = 4
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def others_threads():
    """Leave this thread as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads(monkeypatch):
    """Make one that sees, second by second, how many cores this process and others use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))

    def make(*seconds: tuple[float, float], most: int = CORES) -> TorchThreads:
        times = [(0.0, 0.0, 0.0)]
        for own, others in seconds:
            at, busy, used = times[-1]
            times.append((at + 1, busy + own + others, used + own))
        return TorchThreads(most, iter(times).__next__)

    return make


def test_all_cores_are_used_while_nobody_wants_them(threads):
    each = threads((4.0, 0.0), (0.5, 0.1), (4.0, 0.3))

    assert [each.fit() for _ in range(3)] == [4, 4, 4]


def test_cores_of_others_are_left_to_them_as_long_as_they_use_them(threads):
    each = threads((3.0, 1.0), (1.0, 2.6), (1.0, 9.0), (4.0, 0.0))

    assert [each.fit() for _ in range(4)] == [3, 1, 1, 4]


def test_what_others_did_while_there_was_nothing_to_do_counts_for_nothing(threads):
    each = threads((0.0, 4.0), (4.0, 0.0), (1.0, 3.0), (0.1, 0.0), (1.0, 0.0))

    assert [each.fit() for _ in range(5)] == [4, 4, 1, 1, 4]


def test_no_more_threads_than_were_asked_for(threads):
    assert threads((2.0, 0.0), most=2).fit() == 2
    assert threads((2.0, 3.0), most=2).fit() == 1
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("runner", ["native", "torch"])
def test_an_engine_samples_with_no_more_threads_than_it_was_given(runner, monkeypatch):
    sample, seen = Sampler.sample, []

    def watched(self, logits, rows):
        seen.append(torch.get_num_threads())
        return sample(self, logits, rows)

    monkeypatch.setattr(Sampler, "sample", watched)
    small = {"max_model_len": 64, "num_kv_blocks": 16, "num_threads": 1}

    with LLM(model="smollm2", runner=runner, **small) as llm:
        llm.generate([[5] * 8], SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)

    assert seen == [1, 1, 1]


def test_where_the_system_tells_nothing_the_flag_counts():
    assert TorchThreads(3, lambda: None).fit() == 3


def test_a_look_is_taken_now_and_then_only():
    looks = []
    each = TorchThreads(2, lambda: looks.append(1) or (time.monotonic() + 3_600, 0.0, 0.0))

    assert [each.fit() for _ in range(100)] == [2] * 100
    assert len(looks) == 1


def test_processes_that_take_all_cores_are_seen():
    cores = os.sched_getaffinity(0)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores]
    try:
        until, each = time.monotonic() + PATIENCE_S, TorchThreads(len(cores) + 1)
        while each.fit() > len(cores) // 2:  # and this one is busy as well
            assert time.monotonic() < until, read_times(cores)
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_team_ends_with_the_thread_that_had_it():
    def work() -> tuple[int, str]:
        torch.set_num_threads(3)
        torch.ones(1 << 20).exp()
        return num_threads(), threading.current_thread().name

    during, name = in_passing_thread(work)

    assert name != threading.current_thread().name
    until = time.monotonic() + PATIENCE_S
    while num_threads() > during - 3:  # itself, and the two others of its team
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_goes_wrong_in_a_passing_thread_is_told():
    with pytest.raises(KeyError, match="gone"):
        in_passing_thread(lambda: {}["gone"])


MEMORY = """
import resource, sys
import torch
from stafette.workers import LLM, SamplingParams
from stafette.workers.runner.cpu_process import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):  # the first ones find their places
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def test_memory_that_was_freed_costs_no_new_pages():
    def faults(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-P", "-c", MEMORY, how]))

    assert faults("keep") * 10 < faults("leave")


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))
