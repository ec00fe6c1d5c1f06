"""What is on disk when a worker ends, by itself or killed, and what the next one finds."""

import importlib.util
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stafette.kvtransfer.tiers import disk_format
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.disk_format import HEAD_BYTES, RECORD_BYTES
from stafette.kvtransfer.tiers.errors import TierInUse, TierMismatch
from stafette.kvtransfer.tiers.job import Outcome
from stafette.kvtransfer.tiers.store import TieredStore

WRITER = Path(__file__).with_name("disk_writer.py")
LETTERS = [chr(ord("a") + i) for i in range(26)]


@pytest.fixture
def writer_module():
    spec = importlib.util.spec_from_file_location("disk_writer", WRITER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lives(tmp_path, tools):
    """Return a maker of one life after the other in the same folder."""
    last = []

    def begin(host=4, disk=64, **options):
        if last:
            last.pop().store.close()
        last.append(tools.Rig(tools.config_of(host, disk, tmp_path / "disk", **options)))
        return last[-1]

    yield begin
    for rig in last:
        rig.check_books()
        rig.store.close()


def fill(rig, names=LETTERS):
    for name in names:
        rig.put(name)
        rig.settle()


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x40]))


def test_next_life_finds_all_that_the_last_one_had(lives):
    fill(lives())

    rig = lives()

    assert rig.on("disk") == set(LETTERS)
    assert not rig.on("host")
    for letter in LETTERS:
        assert rig.get(letter) == ["DONE"]


def test_chains_are_told_parents_first_after_a_restart(lives, tools):
    rig = lives(host=8)
    rig.put("a", "ab", "abc", "abcd")

    rig = lives(host=8)
    (event,) = rig.events.events()

    assert event.parent is None
    assert event.hashes == tuple(tools.chain_of(["a", "ab", "abc", "abcd"])[0])
    assert rig.get("a", "ab", "abc", "abcd") == ["DONE"] * 4


def test_order_of_eviction_survives(lives):
    fill(lives(host=3, disk=4), "abcdefgh")  # two of them on the host, saved at the end
    rig = lives(host=3, disk=4)
    assert rig.on("disk") == set("efgh")

    fill(rig, "xyz")

    assert rig.on("disk") == set("fgh") | {"x"}


def test_cleared_blocks_do_not_come_back(lives):
    rig = lives()
    fill(rig)
    rig.store.clear()
    fill(rig, "ab")

    rig = lives()

    assert rig.on("disk") == {"a", "b"}
    assert rig.store.stats().disk.counters.corrupt == 0


def test_without_saving_only_what_had_left_the_host_is_found(lives):
    rig = lives(save_on_close=False)
    fill(rig)
    on_disk = rig.on("disk")
    assert 0 < len(on_disk) < 26

    assert lives().on("disk") == on_disk


def test_larger_disk_keeps_what_a_smaller_one_had_and_the_other_way_round(lives):
    fill(lives(disk=32))

    assert lives(disk=64).on("disk") == set(LETTERS)
    smaller = lives(disk=10)
    assert len(smaller.on("disk")) == 10
    for letter in smaller.on("disk"):
        assert smaller.get(letter) == ["DONE"]


def test_blocks_of_another_model_are_dropped_with_a_word(lives, caplog):
    fill(lives(compatibility="llama bf16"))

    rig = lives(compatibility="qwen bf16")

    assert not rig.on("disk")
    assert "model or layout" in caplog.text
    fill(rig)
    assert lives(compatibility="qwen bf16").on("disk") == set(LETTERS)


def test_blocks_of_another_model_are_refused_when_asked_to(lives):
    rig = lives(compatibility="llama bf16")
    rig.store.close()

    with pytest.raises(
        TierMismatch, match=r"index has model or layout \(digest\) \w+, not \w+: cho"
    ):
        lives(compatibility="qwen bf16", disk_replace=False)
    lives(compatibility="llama bf16", disk_replace=False)


def test_blocks_of_another_size_are_dropped(tmp_path, lives):
    fill(lives())
    lives().store.close()

    with TieredStore(
        TiersConfig(
            host=HostConfig(num_blocks=4),
            disk=DiskConfig(folder=tmp_path / "disk", num_blocks=64),
        ),
        ArrayBlocks(np.zeros((8, 512), np.uint8)),
    ) as store:
        assert store.stats().disk.used_blocks == 0


def test_file_that_is_not_ours_is_left_alone(tmp_path, lives):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "index").write_text("a diary")

    with pytest.raises(TierMismatch, match="has content something else"):
        lives()

    assert (tmp_path / "disk" / "index").read_text() == "a diary"


def test_folder_that_another_worker_has_is_refused(tmp_path, lives, tools):
    lives()

    with pytest.raises(TierInUse, match="give each worker a folder of its own"):
        tools.Rig(tools.config_of(4, 64, tmp_path / "disk", disk_lock_timeout_s=0.1))


def test_damaged_head_begins_anew(tmp_path, lives):
    fill(lives())
    lives().store.close()
    flip(tmp_path / "disk" / "index", 20)

    rig = lives()

    assert not rig.on("disk")
    fill(rig)
    assert lives().on("disk") == set(LETTERS)


def test_later_one_of_two_records_of_a_block_counts(tmp_path, lives, tools):
    rig = lives()
    fill(rig, "ab")
    rig.store.close()
    key = tools.key_of("a")
    with (tmp_path / "disk" / "index").open("r+b") as index:
        head = disk_format.read_head(index.read(HEAD_BYTES))
        records = disk_format.scan(index.read(), head).records
        (slot,) = (slot for slot, record in records.items() if record.key == key)
        for place, sequence in ((10, 0), (11, 99)):
            record = replace(records[slot], sequence=sequence)
            index.seek(HEAD_BYTES + place * RECORD_BYTES)
            index.write(disk_format.pack_record(record, head))
    with (tmp_path / "disk" / "blocks").open("r+b") as blocks:
        blocks.seek(11 * tools.block_bytes)
        blocks.write(tools.content_of(key).tobytes())
        blocks.seek(slot * tools.block_bytes)
        blocks.write(bytes(tools.block_bytes))

    rig = lives()

    assert rig.on("disk") == {"a", "b"}
    assert rig.get("a") == ["DONE"]


def test_damaged_record_is_skipped_and_counted(tmp_path, lives):
    fill(lives())
    lives().store.close()
    flip(tmp_path / "disk" / "index", HEAD_BYTES + 3 * RECORD_BYTES + 40)

    rig = lives()

    assert len(rig.on("disk")) == 25
    assert rig.store.stats().disk.counters.corrupt == 1


def test_damaged_block_is_skipped_counted_and_gone_for_good(tmp_path, lives, tools):
    fill(lives())
    lives().store.close()
    flip(tmp_path / "disk" / "blocks", 5 * tools.block_bytes + 1000)

    rig = lives()
    outcomes = [rig.get(letter)[0] for letter in LETTERS]

    assert sorted(set(outcomes)) == ["CORRUPT", "DONE"]
    assert outcomes.count("CORRUPT") == 1
    assert rig.store.stats().disk.counters.corrupt == 1
    lost = LETTERS[outcomes.index("CORRUPT")]
    assert rig.where(lost) == []
    assert lost not in lives().on("disk")


@pytest.mark.parametrize("seed", range(6))
def test_whatever_bytes_change_no_block_is_wrong(tmp_path, lives, seed):
    fill(lives())
    lives().store.close()
    rng = random.Random(seed)
    for name in ("index", "blocks"):
        path = tmp_path / "disk" / name
        for _ in range(rng.randint(1, 12)):
            flip(path, rng.randrange(path.stat().st_size))
    if seed % 2:
        os.truncate(path, rng.randrange(path.stat().st_size))

    rig = lives()

    for letter in LETTERS:
        assert rig.get(letter)[0] in ("DONE", "CORRUPT", "MISSING")


@pytest.mark.parametrize("write", ["arrival", "eviction"])
def test_killed_worker_leaves_only_right_blocks(tmp_path, writer_module, write):
    rng, number = random.Random(write), 0
    for _ in range(4):
        number, stored = write_until_killed(tmp_path, number, write, rng.randint(12, 30))
        found, outcomes = read_all(tmp_path, writer_module, number)

        assert stored
        assert found > 16
        assert outcomes == {Outcome.DONE}


def write_until_killed(folder, number, write, lines):
    """Return how far the writer has come, and how many blocks it has stored at least."""
    command = [sys.executable, "-P", str(WRITER), str(folder / "disk"), str(number), write]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(lines):
                number, stored = map(int, process.stdout.readline().split())
        finally:
            process.kill()
    return number, stored


def read_all(folder, writer, number):
    """Return how many of the latest blocks a new life finds, and what became of them."""
    size = writer.BLOCK_BYTES
    memory = np.zeros((1, size), np.uint8)
    disk = DiskConfig(folder=folder / "disk", num_blocks=96, admission="always")
    config = TiersConfig(host=HostConfig(num_blocks=2), disk=disk, save_on_close=False)
    found, outcomes = 0, set()
    with TieredStore(config, ArrayBlocks(memory)) as store:
        assert store.stats().disk.counters.corrupt == 0
        for key in (b"%016d" % i for i in range(max(0, number - 300), number + 300)):
            if len(store.lookup([key])):
                job = store.onboard([key], [0])
                assert job.wait(10)
                found += 1
                outcomes |= set(job.outcomes)
                assert (memory[0] == writer.content_of(key)).all()
    return found, outcomes
