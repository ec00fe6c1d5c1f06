"""Notifications are delivered once, in order, and never without bound."""

import threading

import pytest

from stafette.kvtransfer.errors import AccessDenied, InvalidValue, MalformedMessage
from stafette.kvtransfer.notifications import MAX_PAYLOAD_BYTES, Inbox, Notification, check_payload


def payloads(inbox: Inbox) -> list[bytes]:
    return [note.payload for note in inbox.fetch()]


def test_repeated_number_is_delivered_once():
    inbox = Inbox()

    fresh = [inbox.deliver("p", 1, [number, b"%d" % number]) for number in (1, 2, 1)]

    assert fresh == [True, True, False]
    assert payloads(inbox) == [b"1", b"2"]
    assert inbox.repeated == 1


def test_numbers_of_another_life_or_peer_are_others():
    inbox = Inbox()

    for peer, epoch in (("p", 1), ("p", 2), ("q", 1)):
        inbox.deliver(peer, epoch, [7, b""])

    assert [note.peer for note in inbox.fetch()] == ["p", "p", "q"]


def test_only_the_latest_numbers_are_remembered():
    inbox = Inbox(remembered=2)

    for number in (1, 2, 3, 3, 1):
        inbox.deliver("p", 1, [number, b"%d" % number])

    assert payloads(inbox) == [b"1", b"2", b"3", b"1"]


def test_full_inbox_refuses_and_takes_in_again_when_it_was_fetched():
    inbox = Inbox(capacity=1)
    inbox.deliver("p", 1, [1, b"a"])

    with pytest.raises(AccessDenied, match="1 notifications wait"):
        inbox.deliver("p", 1, [2, b"b"])

    assert payloads(inbox) == [b"a"]
    assert inbox.deliver("p", 1, [2, b"b"])


def test_waiting_reader_is_woken_by_the_first_one():
    inbox = Inbox()
    found = []
    reader = threading.Thread(target=lambda: found.extend(inbox.fetch(timeout_s=10)))
    reader.start()

    inbox.deliver("p", 1, [1, b"a"])

    reader.join(10)
    assert [note.payload for note in found] == [b"a"]


@pytest.mark.parametrize("value", [None, [1], [b"a", b"b"], [-1, b""], [1, "text"], [True, b""]])
def test_malformed_notification_is_refused(value):
    with pytest.raises(MalformedMessage):
        Inbox().deliver("p", 1, value)


def test_payload_that_is_too_large_is_refused_before_it_is_sent():
    check_payload(bytes(MAX_PAYLOAD_BYTES))

    with pytest.raises(InvalidValue, match="notify"):
        check_payload(bytes(MAX_PAYLOAD_BYTES + 1))


def test_what_begins_as_a_subscriber_wants_is_passed_on_at_once_and_not_kept():
    inbox, taken = Inbox(), []
    inbox.subscribe(b"a:", taken.append)

    inbox.deliver("peer", 1, [1, b"a:one"])
    inbox.deliver("peer", 1, [2, b"b:two"])
    inbox.deliver("peer", 1, [1, b"a:one"])  # repeated
    inbox.unsubscribe(b"a:")
    inbox.deliver("peer", 1, [3, b"a:three"])

    assert taken == [Notification("peer", b"a:one")]
    assert [each.payload for each in inbox.fetch()] == [b"b:two", b"a:three"]


def test_a_subscriber_that_fails_is_logged_and_the_notification_counts_as_delivered(caplog):
    inbox = Inbox()
    inbox.subscribe(b"a:", lambda notification: 1 / 0)

    assert inbox.deliver("peer", 1, [1, b"a:one"])
    assert not inbox.deliver("peer", 1, [1, b"a:one"])
    assert "ZeroDivisionError" in caplog.text


def test_a_prefix_has_one_subscriber():
    inbox = Inbox()
    inbox.subscribe(b"a:", print)

    with pytest.raises(InvalidValue, match="unsubscribe"):
        inbox.subscribe(b"a:", print)
