"""Errors on the wire: the same class and arguments at the other end, and nothing else ever."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer import errors
from stafette.kvtransfer.control.remote_errors import _ARGUMENTS, pack_error, read_error
from stafette.kvtransfer.errors import KvTransferError, MalformedMessage, TransferError
from stafette.kvtransfer.strict import pack, unpack

text = st.text(max_size=20)
whole = st.integers(0, (1 << 64) - 1)
scalar = st.one_of(st.none(), st.booleans(), whole, st.floats(allow_nan=False), text, st.binary())
typed_errors = st.one_of(
    st.builds(errors.InvalidValue, text, scalar, text),
    st.builds(errors.MalformedMessage, text, text),
    st.builds(errors.PeerLost, text, text),
    st.builds(errors.TransferTimedOut, text, text, st.floats(0, 1e6)),
    st.builds(errors.TransferCancelled, text),
    st.builds(errors.StaleEpoch, text, whole, whole),
    st.builds(errors.LeaseEnded, whole, text),
    st.builds(errors.StaleBlocks, text, text, st.lists(whole, max_size=9).map(tuple)),
    st.builds(errors.AccessDenied, text, text, text),
    st.builds(errors.ChecksumMismatch, text, text),
    st.builds(errors.AuthFailed, text, text),
    st.builds(errors.Incompatible, text, text, text, text),
    st.builds(errors.TransportUnavailable, text, text, text),
    st.builds(errors.TransferError, text),
)


def travel(error: KvTransferError) -> KvTransferError:
    return read_error(unpack(pack(pack_error(error)), 1 << 16))


@given(typed_errors)
def test_an_error_arrives_as_its_class_with_its_arguments(error):
    found = travel(error)

    assert (type(found), found.args, str(found)) == (type(error), error.args, str(error))


def below(kind: type) -> set[type]:
    return {kind}.union(*map(below, kind.__subclasses__()))


def test_every_error_of_a_transfer_can_travel():
    ours = {kind for kind in below(TransferError) if kind.__module__ == errors.__name__}

    assert ours <= set(_ARGUMENTS)


@pytest.mark.parametrize(
    ("error", "args"),
    [
        (errors.LeaseEnded(np.uint64(5), "over"), (5, "over")),
        (errors.StaleBlocks("a", "kv", tuple(np.arange(2))), ("a", "kv", (0, 1))),
        (errors.StaleBlocks("a", "kv", (7,) * 9_999), ("a", "kv", (7,) * 4_096)),
        (errors.InvalidValue("n", 1 << 70, "less"), ("n", str(1 << 70), "less")),
        (errors.InvalidValue("n", (1, 2), "one"), ("n", "(1, 2)", "one")),
        (errors.InvalidValue("n", b"x" * 9_999, "short"), ("n", b"x" * 2_000, "short")),
        (errors.PeerLost("p" * 9_999, "\ud800"), ("p" * 2_000, "?")),
        (errors.TransferTimedOut("p", "it", 5), ("p", "it", 5.0)),
    ],
)
def test_arguments_come_as_what_can_travel(error, args):
    found = travel(error)

    assert (type(found), found.args) == (type(error), args)


class Newer(TransferError):
    pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Newer("what happened"), "Newer: what happened"),
        (errors.NameTaken("w", 1, 2), "NameTaken: w in epoch 1 cannot be published"),
        (errors.StaleEpoch("w", -1, 2), "StaleEpoch: peer w is in epoch 2, not -1"),
        (errors.TransferTimedOut("w", "it", float("inf")), "TransferTimedOut: it with peer w"),
    ],
)
def test_what_peers_do_not_know_is_told_in_words(error, told):
    found = travel(error)

    assert type(found) is TransferError
    assert str(found).startswith(told)


def test_an_unknown_class_of_a_newer_peer_is_a_transfer_error():
    found = read_error(["QuotaExceeded", ["tenant", 7]])

    assert (type(found), str(found)) == (TransferError, "QuotaExceeded: ['tenant', 7]")


plain = st.recursive(scalar | st.floats(), lambda inner: st.lists(inner, max_size=4), max_leaves=6)
names = st.sampled_from(sorted(kind.__name__ for kind in _ARGUMENTS)) | text


@given(names, st.lists(plain, max_size=5) | plain)
def test_nothing_that_arrives_raises_anything_but_malformed(name, arguments):
    try:
        found = read_error(msgpack.unpackb(msgpack.packb([name, arguments])))
    except MalformedMessage:
        return
    assert isinstance(found, KvTransferError)
