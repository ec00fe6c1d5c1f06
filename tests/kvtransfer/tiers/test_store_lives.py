"""Random lives of a store, beside a plain dictionary of what it was given."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stafette.kvtransfer.blocks import ROOT

NAMES = st.text("ab", min_size=1, max_size=4)


class Lives(RuleBasedStateMachine):
    """Each name begins with its parent's. Between two moves, everything comes to rest."""

    tools = None
    HOST, DISK = 6, None
    options: dict = {"patience_s": 20.0}  # a busy machine must not make a difference

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.given: set[str] = set()  # since the last clear
        self.pins = []
        self.open()

    def open(self):
        config = self.tools.config_of(self.HOST, self.DISK, Path(self.folder.name), **self.options)
        self.rig = self.tools.Rig(config, num_slots=2048)

    def chain(self, name):
        return [name[: i + 1] for i in range(len(name))]

    def parents(self, names):
        return [self.tools.key_of(name[:-1]) if name[1:] else ROOT for name in names]

    @rule(name=NAMES)
    def offload_a_prompt(self, name):
        names = self.chain(name)
        outcomes = self.rig.put(*names, parents=self.parents(names))
        kept = {n for n, outcome in zip(names, outcomes, strict=True) if outcome != "DROPPED"}
        self.given |= kept
        assert set(outcomes) <= {"DONE", "PRESENT", "DROPPED"}

    @rule(names=st.lists(NAMES, max_size=3, unique=True))
    def offload_what_leaves_the_device(self, names):
        outcomes = self.rig.put(*names, parents=self.parents(names))
        self.given |= {n for n, o in zip(names, outcomes, strict=True) if o != "DROPPED"}

    @rule(name=NAMES)
    def onboard_a_prompt(self, name):
        names = self.chain(name)
        found = self.rig.where(*names)
        outcomes = self.rig.get(*names)
        assert outcomes == ["DONE"] * len(found) + ["MISSING"] * (len(names) - len(found))

    @rule(name=NAMES)
    def preheat_a_prompt(self, name):
        names = self.chain(name)
        found = len(self.rig.where(*names))
        job = self.rig.store.preheat([self.tools.key_of(n) for n in names])
        assert job.wait(self.tools.timeout_s)
        lossless = isinstance(self, LargeDisk) or not self.DISK
        assert job.num_ready == found if lossless else job.num_ready <= found

    @rule(name=NAMES)
    def pin_a_prompt(self, name):
        self.pins.append(self.rig.store.pin([self.tools.key_of(n) for n in self.chain(name)]))

    @precondition(lambda self: self.pins)
    @rule(index=st.integers(0, 9))
    def unpin(self, index):
        self.pins.pop(index % len(self.pins)).release()

    @rule()
    def clear(self):
        self.rig.store.clear()
        self.given.clear()
        for pin in self.pins:
            pin.release()
        self.pins.clear()

    @invariant()
    def the_books_are_exact(self):
        stats = self.rig.settle()
        calls = stats.calls
        assert calls.offered == calls.offloaded + calls.already_there + calls.offloads_dropped
        for tier in ("host", "disk"):
            assert self.rig.on(tier) <= self.given
        for pin in self.pins:
            assert {key.rstrip(b"\0").decode() for key in pin.hashes} <= self.rig.on("host")

    def teardown(self):
        for pin in self.pins:
            pin.release()
        self.rig.check_books()
        self.rig.store.close()
        self.folder.cleanup()


class HostOnly(Lives):
    """The last tier: no child is here without its parent, unless it came without it."""


class SmallDisk(Lives):
    DISK = 8


class SmallDiskByFrequency(Lives):
    DISK = 8
    options = {"disk_admission": "frequency", "disk_policy": "s3fifo"}


class WrittenOnArrival(Lives):
    DISK = 8
    options = {"disk_write": "arrival"}


class LargeDisk(Lives):
    """Holds all there is, so nothing is ever lost: the dictionary tells exactly what is found."""

    DISK = 64

    @rule()
    def restart(self):
        for pin in self.pins:
            pin.release()
        self.pins.clear()
        self.rig.store.close()
        self.open()

    @invariant()
    def all_that_was_given_is_there(self):
        self.rig.settle()
        assert self.rig.on("host") | self.rig.on("disk") == self.given
        assert not self.rig.store.stats().host.counters.lost


class LargeDiskWrittenOnArrival(LargeDisk):
    options = Lives.options | {"disk_write": "arrival", "disk_policy": "lfu"}


ALL = [HostOnly, SmallDisk, SmallDiskByFrequency, WrittenOnArrival, LargeDisk]


@pytest.mark.parametrize("lives", [*ALL, LargeDiskWrittenOnArrival], ids=lambda c: c.__name__)
def test_blocks_are_right_books_exact_and_pins_hold_in_random_lives(lives, tools):
    case = type("Case", (lives,), {"tools": tools}).TestCase
    case.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
    case("runTest").runTest()
