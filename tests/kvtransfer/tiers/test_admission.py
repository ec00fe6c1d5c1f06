"""Which blocks are worth a write: always, by frequency, or whichever pays."""

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.tiers.admission import ADMISSIONS, make_admission
from stafette.kvtransfer.tiers.frequency import MOST, FrequencySketch


@cache
def key_of(number):
    return random.Random(number).randbytes(16)


def test_estimate_is_never_too_low_and_hardly_ever_too_high():
    sketch, counts = FrequencySketch(1000), Counter()
    rng = random.Random(1)
    for _ in range(5000):
        key = key_of(int(rng.paretovariate(0.5)) % 3000)
        sketch.count([key])
        counts[key] += 1

    wrong = 0
    for key, count in counts.items():
        estimate = sketch.estimate(key)
        assert estimate >= min(count, MOST)
        wrong += estimate > count
    assert wrong < len(counts) / 50


def test_unknown_key_was_never_used():
    sketch = FrequencySketch(100)
    sketch.count([key_of(1)])

    assert sketch.estimate(key_of(2)) == 0


def test_what_was_popular_long_ago_is_forgotten():
    sketch = FrequencySketch(100)
    for _ in range(8):
        sketch.count([key_of(0)])

    others = np.random.default_rng(1).bytes(16 * 50_000)
    keys = [others[i : i + 16] for i in range(0, len(others), 16)]
    for _ in range(14):
        sketch.count(keys)

    assert sketch.estimate(key_of(0)) < 2


def test_always_admits():
    admission = make_admission("always", 1)

    assert admission.admits(key_of(1), full=True)


def test_frequency_admits_all_while_there_is_room_and_then_what_was_used_twice():
    admission = make_admission("frequency", 100)
    for number in (1, 2, 2):
        admission.used([key_of(number)], [key_of(number)])

    assert admission.admits(key_of(1), full=False)
    assert not admission.admits(key_of(1), full=True)
    assert admission.admits(key_of(2), full=True)


def run_disk(name, capacity, keys):
    """Return the hits of a disk behind a host that holds nothing; a prompt has 20 of the keys."""
    admission = make_admission(name, capacity)
    disk: dict[bytes, None] = {}
    hits = 0
    for first in range(0, len(keys), 20):
        prompt = list(dict.fromkeys(keys[first : first + 20]))
        admission.used(prompt, prompt)
        for key in prompt:
            if key in disk:
                hits += 1
                disk[key] = disk.pop(key)
            elif admission.admits(key, full=len(disk) >= capacity):
                if len(disk) >= capacity:
                    del disk[next(iter(disk))]
                disk[key] = None
    return hits


def hot_blocks_in_a_stream(length):
    """What is used again is a small part; the rest would push it out."""
    rng = random.Random(3)
    return [key_of(rng.randrange(300)) if i % 4 == 0 else key_of(1000 + i) for i in range(length)]


def blocks_that_come_back_once(length):
    """Everything is used twice, some time later."""
    return [key_of(i if i % 2 else max(1, i - 301)) for i in range(length)]


@pytest.mark.parametrize("capacity", [400, 1200])  # the larger one plays on a sample
@pytest.mark.parametrize("work", [hot_blocks_in_a_stream, blocks_that_come_back_once])
def test_adaptive_admission_finds_out_which_of_the_others_pays(work, capacity):
    prompts = work(30_000)

    hits = {name: run_disk(name, capacity, prompts) for name in ADMISSIONS}

    best, worst = max(hits.values()), min(hits["always"], hits["frequency"])
    assert hits["adaptive"] > (best + worst) / 2  # it has to learn first


def test_the_two_kinds_of_work_are_told_apart():
    hot, once = hot_blocks_in_a_stream(30_000), blocks_that_come_back_once(30_000)

    assert run_disk("frequency", 400, hot) > 1.2 * run_disk("always", 400, hot)
    assert run_disk("always", 400, once) > 1.2 * run_disk("frequency", 400, once)


def test_unknown_admission_lists_those_that_are_there():
    with pytest.raises(InvalidValue, match="must be one of .*; the nearest is always"):
        make_admission("alway", 1)


def test_sketch_for_no_keys_is_refused():
    with pytest.raises(InvalidValue, match="num_keys = 0"):
        FrequencySketch(0)
