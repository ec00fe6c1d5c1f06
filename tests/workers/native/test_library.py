"""The native library's edge: what it refuses, and what its threads promise."""

import ctypes

import numpy as np
import pytest

from stafette.workers.native import library
from stafette.workers.native.library import Matrix, NativeError, PagedAttention, Team
from stafette.workers.native.structs import AttentionDesc, Kind, PartDesc, Source

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))


def part(num_rows, columns, **changes):
    """A part of random floats, and what must live as long as it."""
    values = np.random.default_rng(0).standard_normal((num_rows, columns)).astype(np.float32)
    fields = {"source": Source.FLOAT32, "rows": num_rows, "data": values.ctypes.data}
    fields |= {"first_row": 0, "block": num_rows, "stride": num_rows}
    return PartDesc(**(fields | changes)), values


def attention_desc(**changes):
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "block_size": 16, "scale": 1.0}
    return AttentionDesc(**(fields | changes))


def test_unknown_instruction_set_is_refused_with_a_reason():
    assert "cannot run" in library.why_not("avx1024")
    with pytest.raises(NativeError, match="cannot run"):
        Team(1, "avx1024")


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_impossible_numbers_of_threads_are_refused(threads):
    with pytest.raises(NativeError, match="threads"):
        Team(threads)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": 9},
        {"source": -1},
        {"rows": 0},
        {"data": None},
        {"block": 0},
        {"stride": 1},
        {"first_row": -1},
        {"source": Source.INT8},  # without scales
    ],
)
def test_malformed_parts_are_refused(changes):
    desc, _values = part(8, 64, **changes)

    with Team(1) as team, pytest.raises(NativeError):
        Matrix(team, Kind.INT8, (8, 64), [desc])


def test_dense_parts_do_not_become_4_bit_matrices():
    desc, _values = part(8, 64)

    with Team(1) as team, pytest.raises(NativeError, match="4-bit"):
        Matrix(team, Kind.INT4, (8, 64), [desc])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 0},
        {"num_kv_heads": 3},
        {"head_dim": 8},
        {"head_dim": 4096},
        {"block_size": 24},
        {"kv_element": 7},
    ],
)
def test_malformed_attention_is_refused(changes):
    with Team(1) as team, pytest.raises(NativeError):
        PagedAttention(team, attention_desc(**changes))


@pytest.mark.parametrize(
    ("starts", "contexts", "table", "message"),
    [
        ([0, 2], [2], [9], "block_tables"),
        ([0, 2], [2], [-1], "block_tables"),
        ([0, 2], [1], [0], "context_lens"),
        ([0, 2], [99], [0], "context_lens"),
        ([1, 0], [2], [0], "query_starts"),
        ([0, 7], [7], [0], "query_starts"),
    ],
)
def test_attention_outside_its_pool_is_refused(starts, contexts, table, message):
    pool = np.zeros((1, 2, 2, 16, 32), np.float32)
    rows, out = np.zeros((2, 4, 32), np.float32), np.zeros((2, 4, 32), np.float32)
    arrays = [np.array(values, np.int32) for values in (starts, contexts, table)]
    desc = attention_desc(num_tokens=2, num_seqs=1, table_width=1, num_blocks=1)
    desc.q, desc.q_stride, desc.out, desc.layer_kv = (
        rows.ctypes.data,
        128,
        out.ctypes.data,
        pool.ctypes.data,
    )
    desc.block_stride, desc.value_stride, desc.head_stride = 2048, 1024, 512
    desc.query_starts, desc.context_lens, desc.block_tables = (a.ctypes.data for a in arrays)

    with Team(2) as team, PagedAttention(team, desc) as attention:
        with pytest.raises(NativeError, match=message):
            attention.attend(desc)


def test_slots_outside_the_pool_are_refused():
    pool = np.zeros((1, 2, 2, 16, 32), np.float32)
    rows, slots = np.ones((1, 2, 32), np.float32), np.array([16], np.int64)
    desc = attention_desc(num_tokens=1, num_blocks=1, layer_kv=pool.ctypes.data)
    desc.k = desc.v = rows.ctypes.data
    desc.k_stride = desc.v_stride = 64
    desc.block_stride, desc.value_stride, desc.head_stride = 2048, 1024, 512
    desc.slots = slots.ctypes.data

    with Team(1) as team, PagedAttention(team, desc) as attention:
        with pytest.raises(NativeError, match="slots"):
            attention.write(desc)

    assert not pool.any()


def test_structures_have_the_sizes_of_the_c_declarations():
    """Five 32-bit counts are padded to 24 bytes, and so on: a field lost on one side shows here."""
    assert ctypes.sizeof(PartDesc) == 4 + 4 + 8 * 7
    assert ctypes.sizeof(AttentionDesc) == 4 * 10 + 4 + 4 + 8 * 3 + 8 * 3 + 8 + 8 * 4 + 8 * 5


def test_teams_come_and_go_without_leaving_threads():
    before = len(_threads())

    for threads in (1, 2, 3):
        with Team(threads):
            assert len(_threads()) == before + threads - 1

    assert len(_threads()) == before


def _threads():
    from pathlib import Path

    return list(Path("/proc/self/task").iterdir())
