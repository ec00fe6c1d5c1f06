"""All keys under a prefix at one revision, and the watch that goes on from there.

After a break nothing is resumed: everything is listed anew. So it makes no difference whether the
history was compacted meanwhile, or the etcd came back with other data.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stafette.kvtransfer.directory.etcd.client import EtcdClient
from stafette.kvtransfer.directory.etcd.messages import EVENT_DELETE, RANGE, pb
from stafette.kvtransfer.directory.store import Change, Feed
from stafette.kvtransfer.errors import DirectoryUnavailable

_PAGE_KEYS = 32  # whose values fit together into an answer
_PINGS = 4  # unanswered until the watch counts as broken


@dataclass(slots=True)
class Listing:
    revision: int
    values: dict[bytes, bytes] = field(default_factory=dict)  # without the prefix


def list_keys(client: EtcdClient, prefix: bytes, deadline: float) -> Listing:
    """Read page by page, all at the revision of the first one."""
    listing, start = Listing(0), prefix
    while True:
        request = pb.RangeRequest(
            key=start, range_end=_end(prefix), limit=_PAGE_KEYS, revision=listing.revision
        )
        page = client.call(RANGE, request, deadline)
        listing.revision = listing.revision or page.header.revision
        listing.values.update({_name(prefix, kv): kv.value for kv in page.kvs})
        if not page.more:
            return listing
        start = page.kvs[-1].key + b"\0"


class EtcdFeed(Feed):
    def __init__(
        self, client: EtcdClient, prefix: bytes, silence_s: float, deadline: float
    ) -> None:
        listing = list_keys(client, prefix, deadline)
        self.snapshot = listing.values
        self.revision = listing.revision  # the newest that was heard of
        self.rewound = False
        self.heard_at = time.monotonic()
        self._place = client.place
        self._prefix = prefix
        self._silence_s = silence_s
        self._asked_at = self.heard_at
        create = pb.WatchCreateRequest(
            key=prefix, range_end=_end(prefix), start_revision=listing.revision + 1, fragment=True
        )
        self._stream = client.watch(create, deadline)
        self._await_created(deadline)

    def next(self, timeout_s: float) -> Sequence[Change]:
        answer = self._stream.read(min(timeout_s, self._silence_s / _PINGS))
        now = time.monotonic()
        if answer is None:
            self._doubt(now)
            return ()
        self.heard_at = now
        return self._take(answer)

    def close(self) -> None:
        self._stream.close()

    def _await_created(self, deadline: float) -> None:
        """Learn early that the watch does not work; what is listed may be out of date by then."""
        try:
            answer = self._stream.read(deadline - time.monotonic())
            if answer is None:
                raise DirectoryUnavailable(self._place, "the watch did not begin in time")
            self._take(answer)
            if answer.header.revision < self.revision:  # it would wait for what may never come
                raise DirectoryUnavailable(self._place, "it is behind what was just listed")
        except DirectoryUnavailable:
            self.close()
            raise

    def _take(self, answer: Any) -> list[Change]:
        if answer.canceled:  # by compaction, or for want of the right to read
            reason = answer.cancel_reason or f"compacted up to {answer.compact_revision}"
            raise DirectoryUnavailable(self._place, f"the watch was cancelled: {reason}")
        self.revision = max(self.revision, answer.header.revision)
        return [
            (_name(self._prefix, event.kv), None if event.type == EVENT_DELETE else event.kv.value)
            for event in answer.events
        ]

    def _doubt(self, now: float) -> None:
        """Nothing was heard: ask whether anybody is there; give up after some questions."""
        silent_s = now - self.heard_at
        if silent_s >= self._silence_s:
            raise DirectoryUnavailable(self._place, f"nothing was heard for {silent_s:.1f} s")
        if now - self._asked_at >= self._silence_s / _PINGS:
            self._asked_at = now
            self._stream.ask_progress()


def _end(prefix: bytes) -> bytes:
    """Return the first key behind those that begin so; the prefix ends with a slash."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _name(prefix: bytes, kv: Any) -> bytes:
    name: bytes = kv.key[len(prefix) :]
    return name
