"""The events of stock vLLM and SGLang, in the forms of all their versions, in our words."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer import vllm_events
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.events import AllCleared, BlockRemoved, BlockStored
from stafette.kvtransfer.vllm_events import VllmBatch, VllmReader

ONE, TWO, THREE = (number.to_bytes(8, "little") for number in (1, 2, 3))


def decode(*events):
    return vllm_events.decode(msgpack.packb([1.0, events, 0]))


def stored(hashes=(1,), parent=None, tokens=(5,), block_size=1, **more):
    """Return an event as newer versions write it; fields with their default are left out."""
    fields = {
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": block_size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    return {"type": "BlockStored", **fields, **more}


def removed(*hashes, medium="GPU", **more):
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": medium, **more}


def test_events_are_read_as_lists():
    data = msgpack.packb(
        [
            1.5,
            [
                ["BlockStored", [7, b"x" * 32], None, [1, 2, 3, 4], 2, None, "GPU", "lora-a"],
                ["BlockStored", [8], 7, [5, 6], 2, 3],
                ["BlockStored", [8], None, [], 0, None, "CPU_TIER1"],  # offloaded: no tokens
                ["BlockRemoved", [7], "CPU"],
                ["BlockRemoved", [-1]],
                ["AllBlocksCleared"],
            ],
            3,
        ]
    )

    batch = vllm_events.decode(data)

    seven = (7).to_bytes(8, "little")
    eight = (8).to_bytes(8, "little")
    assert (batch.timestamp, batch.dp_rank) == (1.5, 3)
    assert batch.events == (
        BlockStored(None, (seven, b"x" * 32), "device", (1, 2, 3, 4), 2, "lora-a"),
        BlockStored(seven, (eight,), "device", (5, 6), 2, "3"),
        BlockStored(None, (eight,), "host"),
        BlockRemoved((seven,), "host"),
        BlockRemoved((b"\xff" * 8,), None),
        AllCleared(),
    )


def test_events_are_read_as_maps_with_fields_of_newer_versions():
    event = stored([b"h" * 32], b"p" * 32, [1, 2], 2, extra_keys=None, locality="LOCAL", later=1)

    batch = decode(event, removed(b"h" * 32, medium=None), {"type": "AllBlocksCleared"})

    assert batch.events == (
        BlockStored(b"p" * 32, (b"h" * 32,), "device", (1, 2), 2),
        BlockRemoved((b"h" * 32,), None),
        AllCleared(),
    )
    assert batch.ignored == 0


@pytest.mark.parametrize("more", [{}, {"type": "KVEventBatch"}])
def test_batches_are_read_as_maps(more):
    fields = {"ts": 2.5, "events": [["AllBlocksCleared"]], "data_parallel_rank": 1}

    assert vllm_events.decode(msgpack.packb(more | fields)) == VllmBatch(2.5, (AllCleared(),), 1)
    assert vllm_events.decode(msgpack.packb({"ts": 2.5, "events": []})).dp_rank == 0


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        (None, "device"),
        ("GPU", "device"),
        ("CPU", "host"),
        ("CPU_PINNED", "host"),
        ("CPU_TIER1", "host"),
        ("CPU_TIER2", "disk"),
        ("DISK", "disk"),
        ("STORAGE", "disk"),
        ("FS", "disk"),
        ("OBJ", "peer"),
        ("EXTERNAL", "peer"),
    ],
)
def test_every_medium_is_a_tier(medium, tier):
    where = None if medium is None else tier

    assert decode(stored(medium=medium), removed(1, medium=medium)).events == (
        BlockStored(None, (ONE,), tier, (5,), 1),
        BlockRemoved((ONE,), where),
    )


def test_what_is_not_on_the_workers_host_is_with_a_peer():
    batch = decode(
        stored(medium="STORAGE", locality="REMOTE"),
        removed(1, medium="STORAGE", locality="REMOTE"),
    )

    assert [event.tier for event in batch.events] == ["peer", "peer"]


def test_events_that_nobody_knows_are_ignored_and_the_others_are_not():
    batch = decode(
        stored(medium="TAPE"),
        removed(1, medium="TAPE"),
        {"type": "BlockMoved", "block_hashes": [1]},
        ["BlockMoved", [1]],
        stored([2]),
    )

    assert batch.events == (BlockStored(None, (TWO,), "device", (5,), 1),)
    assert batch.ignored == 4


def test_blocks_that_were_copied_to_another_tier_are_no_chain():
    batch = decode(stored([1, 2], None, [], 0, medium="CPU"))

    assert batch.events == (BlockStored(None, (ONE,), "host"), BlockStored(None, (TWO,), "host"))


@pytest.mark.parametrize(
    "extra_keys",
    [
        [None, ["image", 0], None],
        [None, ["lora-a", ["image", 3]], None],
        [[], ["a tenant's salt"], []],
    ],
)
def test_tokens_are_told_of_those_blocks_only_that_they_describe(extra_keys):
    event = stored([1, 2, 3], None, [5, 6, 7], 1, lora_name="lora-a", extra_keys=extra_keys)

    assert decode(event).events == (
        BlockStored(None, (ONE,), "device", (5,), 1, "lora-a"),
        BlockStored(ONE, (TWO, THREE), "device"),
    )


@pytest.mark.parametrize(
    "more",
    [
        {"extra_keys": [["salt"], None]},
        {"cache_salt": "salt"},
        {"lora_name": {"cache_salt": "salt"}},  # SGLang's lists
    ],
)
def test_what_a_salt_hides_from_other_tenants_is_stored_without_its_tokens(more):
    assert decode(stored([1, 2], 3, [5, 6], 1, **more)).events == (
        BlockStored(THREE, (ONE, TWO), "device"),
    )


@pytest.mark.parametrize(
    ("adapter", "name"), [({"lora_name": "a"}, "a"), ({"lora_id": 7, "lora_name": None}, "7")]
)
def test_an_adapter_among_the_extra_keys_is_told_by_its_name(adapter, name):
    keys = [[value for value in adapter.values() if value]]

    assert decode(stored(extra_keys=keys, **adapter)).events == (
        BlockStored(None, (ONE,), "device", (5,), 1, name),
    )


def test_only_groups_that_keep_whole_prefixes_count():
    """A window drops its block while the other group keeps its own, under the same hash."""
    reader = VllmReader()
    batches = [
        [stored([1], group_idx=0, kv_cache_spec_kind="full_attention")],
        [stored([1], group_idx=1, kv_cache_spec_kind="sliding_window")],
        [removed(1, group_idx=1)],
        [removed(1, group_idx=0)],
    ]

    read = [reader.read(msgpack.packb([1.0, events])) for events in batches]

    assert [batch.events for batch in read] == [
        (BlockStored(None, (ONE,), "device", (5,), 1),),
        (),
        (),
        (BlockRemoved((ONE,), "device"),),
    ]
    assert [batch.ignored for batch in read] == [0, 1, 1, 0]


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention", None])
def test_a_group_counts_whatever_its_number(kind):
    more = {} if kind is None else {"kv_cache_spec_kind": kind}

    assert len(decode(stored(group_idx=3, **more), removed(1, group_idx=3)).events) == 2


@pytest.mark.parametrize("kind", ["sliding_window", "mamba", "unknown", "of next year", 7])
def test_any_other_kind_of_group_does_not(kind):
    assert decode(stored(group_idx=3, kv_cache_spec_kind=kind)).events == ()


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {"ts": 1.0},
        {"ts": 1.0, "events": [], "data_parallel_rank": "0"},
        [1.0],
        [1.0, [], 0, 0],
        ["1.0", [], 0],
        [1.0, [], -1],
        [1.0, [["BlockStored", [1], None, [1, 2, 3], 2, None]]],
        [1.0, [["BlockStored", [1.5], None, [1, 2], 2, None]]],
        [1.0, [["BlockStored", [1], None, [1, 2], 2, None, 7]]],
        [1.0, [["BlockStored", [1]]]],
        [1.0, [{"block_hashes": [1]}]],
        [1.0, [{"type": "BlockRemoved"}]],
        [1.0, [stored(extra_keys=7)]],
        [1.0, [stored(group_idx="0")]],
        [1.0, [stored(lora_name=7)]],
        [1.0, [[]]],
        [1.0, ["AllBlocksCleared"]],
    ],
)
def test_what_vllm_would_not_send_is_malformed(fields):
    with pytest.raises(MalformedMessage):
        vllm_events.decode(msgpack.packb(fields))


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.binary(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
known_names = st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared"])
field_names = [*vllm_events._FIELDS["BlockStored"], "locality", "cache_salt"]


@given(known_names, st.lists(plain, max_size=12), st.booleans())
def test_no_event_can_make_the_reader_fail_otherwise(name, values, mapped):
    fields = dict(zip(field_names, values, strict=False))
    event = {"type": name, **fields} if mapped else [name, *values]

    with suppress(MalformedMessage):
        vllm_events.decode(msgpack.packb([1.0, [event]]))


good_fields = st.fixed_dictionaries(
    {"block_hashes": st.just([1, 2]), "token_ids": st.just([3, 4]), "block_size": st.just(1)},
    optional={name: plain for name in field_names[4:]},
)


@given(good_fields)
def test_no_field_beside_good_ones_can_make_the_reader_fail_otherwise(fields):
    with suppress(MalformedMessage):
        decode({"type": "BlockStored"} | fields)
