"""The reader agrees with the gguf package's writer, and survives any damage with a typed error."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.gguf import GgufFile
from stafette.workers.weights.gguf_checkpoint import GgufCheckpoint
from stafette.workers.weights.shapes import verify_shapes

MIB = 1 << 20
QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_metadata_and_tensors_are_what_the_reference_writer_wrote(tmp_path):
    path = tmp_path / "model.gguf"
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -600)
    writer.add_int32("a.i32", -70_000)
    writer.add_uint64("a.u64", 1 << 40)
    writer.add_int64("a.i64", -(1 << 40))
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "wörter")
    writer.add_array("a.texts", ["x", "", "ü"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("m", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GgufFile(path)

    scalars = {k: v for k, v in file.metadata.items() if not k.endswith(("texts", "numbers"))}
    assert scalars == {
        "general.architecture": "llama",
        "a.u8": 200,
        "a.i8": -5,
        "a.u16": 60_000,
        "a.i16": -600,
        "a.i32": -70_000,
        "a.u64": 1 << 40,
        "a.i64": -(1 << 40),
        "a.f64": 0.1,
        "a.flag": True,
        "a.text": "wörter",
    }
    assert file.metadata["a.texts"].to_list() == ["x", "", "ü"]
    assert file.metadata["a.numbers"].tolist() == [1, 2, 3]
    assert np.array_equal(file.rows(file.tensors["m"]).view(np.float32), matrix)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_in_use_are_read(tiny_draft, tmp_path, version):
    tiny_draft.version = version

    file = GgufFile(tiny_draft.write(tmp_path / "model.gguf"))

    assert file.tensors["token_embd.weight"].shape == (10, 32)


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"magic": b"PK\3\4"}, "model", "not a GGUF file"),
        ({"version": 1}, "GGUF version", "only 2 and 3 are read"),
        ({"version": 0x03000000}, "GGUF version", "only 2 and 3 are read"),
    ],
)
def test_another_kind_of_file_is_named(tiny_draft, tmp_path, change, field, remedy):
    for name, value in change.items():
        setattr(tiny_draft, name, value)

    with pytest.raises(CheckpointError, match=remedy) as caught:
        GgufFile(tiny_draft.write(tmp_path / "model.gguf"))

    assert caught.value.field == field


def test_empty_and_absent_files_are_named(tmp_path):
    (tmp_path / "empty.gguf").touch()

    with pytest.raises(CheckpointError, match="is empty"):
        GgufFile(tmp_path / "empty.gguf")
    with pytest.raises(CheckpointError, match="cannot be read"):
        GgufFile(tmp_path / "absent.gguf")


def test_missing_end_of_the_data_is_told_in_bytes(tiny_draft, tmp_path):
    data = tiny_draft.to_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data[:-1])

    with pytest.raises(CheckpointError) as caught:
        GgufFile(path)

    expected = f"blk.0.ffn_down.weight needs {len(data)} bytes, it has {len(data) - 1}"
    assert expected in caught.value.remedy


def test_unsupported_type_lists_the_supported_ones(tiny_draft, tmp_path):
    tiny_draft.add_packed("blk.0.ffn_up.weight", (64, 32), 99, bytes(64 * 32))

    with pytest.raises(CheckpointError, match=r"Q4_1.*Q8_0") as caught:
        GgufFile(tiny_draft.write(tmp_path / "model.gguf"))

    assert (caught.value.field, caught.value.value) == ("blk.0.ffn_up.weight ggml type", 99)


def test_rows_that_do_not_fill_their_blocks_are_refused(tiny_draft, tmp_path):
    tiny_draft.add_packed("blk.0.ffn_up.weight", (64, 40), 8, bytes(64 * 68))

    with pytest.raises(CheckpointError, match="Q8_0 hold a multiple of 32") as caught:
        GgufFile(tiny_draft.write(tmp_path / "model.gguf"))

    assert caught.value.value == (64, 40)


def test_a_tensor_must_not_come_twice(tiny_draft, tmp_path):
    data = tiny_draft.to_bytes().replace(b"blk.0.ffn_up.weight", b"blk.0.attn_q.weight")
    path = tmp_path / "model.gguf"
    path.write_bytes(data)

    with pytest.raises(CheckpointError, match="twice"):
        GgufFile(path)


@pytest.mark.parametrize("alignment", [0, 24, 4])
def test_alignment_must_be_a_power_of_two(tiny_draft, tmp_path, alignment):
    tiny_draft.metadata["general.alignment"] = alignment

    with pytest.raises(CheckpointError, match="power of two"):
        GgufFile(tiny_draft.write(tmp_path / "model.gguf"))


def test_text_that_is_not_utf8_is_refused(tiny_draft, tmp_path):
    tiny_draft.metadata["general.name"] = "a very usual name"
    data = tiny_draft.to_bytes().replace(b"a very usual name", b"a very \xff\xfeual name")
    path = tmp_path / "model.gguf"
    path.write_bytes(data)

    with pytest.raises(CheckpointError, match="not UTF-8"):
        GgufFile(path)


def open_and_load_all(data: bytes, path) -> None:
    path.write_bytes(data)
    checkpoint = GgufCheckpoint(path)
    verify_shapes(checkpoint)
    for name in checkpoint.names():
        checkpoint.load(name)


@QUICK
@given(data=st.data())
def test_a_file_cut_anywhere_gives_a_checkpoint_error(tiny_draft, tmp_path, data):
    whole = tiny_draft.to_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(CheckpointError):
        open_and_load_all(whole[:length], tmp_path / "cut.gguf")


@QUICK
@given(data=st.data())
def test_damage_gives_a_checkpoint_error_or_other_numbers_but_no_large_allocation(
    tiny_draft, tmp_path, data
):
    damaged = bytearray(tiny_draft.to_bytes())
    header = damaged.find(struct.pack("<f", 1e-5)) + 1200  # where damage means something
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(header, len(damaged)) - 8))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
        damaged[place : place + len(patch)] = patch

    tracemalloc.start()
    try:
        open_and_load_all(bytes(damaged), tmp_path / "damaged.gguf")
    except CheckpointError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 4 * MIB


@pytest.mark.parametrize("count", [1 << 32, (1 << 63) - 1, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [5, 8])
def test_an_array_longer_than_the_file_is_never_allocated(tmp_path, count, kind):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    path = tmp_path / "model.gguf"
    path.write_bytes(head + struct.pack("<IIQ", 9, kind, count) + bytes(64))

    with pytest.raises(CheckpointError, match="ends early"):
        GgufFile(path)
