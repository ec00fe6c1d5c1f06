"""Many threads at once: no block is ever wrong, and in the end nothing is held."""

import random
import threading

import pytest

from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.tiers.job import Outcome

THREADS = 6
ROUNDS = 1000
ALLOWED = {Outcome.DONE, Outcome.PRESENT, Outcome.MISSING, Outcome.DROPPED, Outcome.CANCELLED}


class User(threading.Thread):
    """Offloads, onboards, pins, preheats and cancels; each has device slots of its own."""

    def __init__(self, rig, tools, number):
        super().__init__(daemon=True)
        self.rig, self.tools = rig, tools
        self.random = random.Random(number)
        self.slots = range(number * 256, number * 256 + 256)
        self.error = None

    def run(self):
        try:
            for _ in range(ROUNDS):
                self.random.choice([self.offload, self.onboard, self.onboard, self.other])()
        except BaseException as error:
            self.error = error

    def prompt(self):
        """Return a prompt of up to 12 blocks that shares its beginning with many others."""
        name, names = "", []
        for _ in range(self.random.randint(1, 12)):
            name += self.random.choice("aaab")
            names.append(name)
        keys = [self.tools.key_of(name) for name in names]
        return keys, [ROOT, *keys[:-1]]

    def offload(self):
        keys, parents = self.prompt()
        slots = self.random.sample(self.slots, len(keys))
        for key, slot in zip(keys, slots, strict=True):
            self.rig.memory[slot] = self.tools.content_of(key)
        self.rig.store.touch(keys)
        job = self.rig.store.offload(keys, parents, slots)
        if self.random.random() < 0.2:
            job.cancel()
        assert job.wait(self.tools.timeout_s)
        self.rig.memory[slots] = 0xEE  # what is copied from now on is wrong
        assert set(job.outcomes) <= ALLOWED

    def onboard(self):
        keys, _ = self.prompt()
        slots = self.random.sample(self.slots, len(keys))
        self.rig.memory[slots] = 0
        job = self.rig.store.onboard(keys, slots)
        if self.random.random() < 0.2:
            job.cancel()
        assert job.wait(self.tools.timeout_s)
        for key, slot, outcome in zip(keys, slots, job.outcomes, strict=True):
            assert outcome in ALLOWED
            wanted = self.tools.content_of(key) if outcome is Outcome.DONE else 0
            assert (self.rig.memory[slot] == wanted).all(), outcome

    def other(self):
        keys, _ = self.prompt()
        match self.random.randrange(20):
            case 0:
                self.rig.store.clear()
            case n if n < 8:
                self.rig.store.preheat(keys)
            case _:
                self.rig.store.pin(keys).release()


@pytest.mark.parametrize("write", ["eviction", "arrival"])
def test_crowd_of_threads_gets_only_right_blocks(rigs, tools, write):
    rig = rigs(host=40, disk=60, disk_write=write, max_offload_blocks=30, max_demote_blocks=20)
    users = [User(rig, tools, number) for number in range(THREADS)]

    for user in users:
        user.start()
    for user in users:
        user.join(60)

    assert not any(user.is_alive() for user in users)
    for user in users:
        if user.error is not None:
            raise user.error
    stats = rig.check_books()
    assert stats.disk.counters.corrupt == 0
    assert stats.calls.onboarded > 0
    assert stats.disk.counters.hits > 0
