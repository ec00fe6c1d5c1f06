"""The fleet's workers in columns, and what has changed of them since a reader looked last.

A reader that was here before gets the rows that are new or different, and who is gone. Workers have
numbers, because their names are long.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SILENT_S = 3.0  # without a word from a worker that should beat every second
_KEPT_GONE = 4_096  # a reader that has missed more of them gets the whole table
SERVING, DRAINING, SILENT, UNHEARD = range(4)

WHO = ("name", "pool", "host", "address", "seats", "max_len", "blocks", "block_size", "block_bytes")
HOW = (
    *("role", "state", "running", "waiting", "queued", "used", "cached"),
    *("queries", "hits", "pulled", "passed"),
)
_OF_WHO = (
    *("class", "host", "address", "max_num_seqs", "max_model_len"),
    *("num_blocks", "block_size", "block_bytes"),
)

Worker = Mapping[str, Any]
Row = tuple[Any, ...]


@dataclass(slots=True)
class _Known:
    """A worker's life, as it was seen last."""

    number: int
    who: Row  # nothing of it changes
    version: int  # in which it came
    flows: "_Flows"
    how: Row = ()
    how_version: int = 0


@dataclass(slots=True)
class _Flows:
    """Tokens whose KV comes and goes, as rates between two words of the worker."""

    at: float
    counts: tuple[int, int]  # pulled, passed
    rates: tuple[int, int] = (0, 0)

    def see(self, at: float, counts: tuple[int, int]) -> None:
        passed_s = at - self.at
        if passed_s <= 0 or (counts == self.counts and self.rates == (0, 0)):
            return
        (old_in, old_out), (new_in, new_out) = self.counts, counts
        self.rates = (
            max(0, round((new_in - old_in) / passed_s)),
            max(0, round((new_out - old_out) / passed_s)),
        )
        self.at, self.counts = at, counts


class WorkerTable:
    def __init__(self) -> None:
        self._known: dict[tuple[str, int], _Known] = {}  # by name and epoch
        self._gone: deque[tuple[int, int]] = deque(maxlen=_KEPT_GONE)  # version, number
        self._next_number = 0
        self._whole_before = 0  # readers of older versions may have missed who is gone

    def __len__(self) -> int:
        return len(self._known)

    def look(self, workers: Iterable[Worker], version: int, now: float) -> None:
        """Take the workers as they are; `version` is higher than in every look before."""
        before, self._known = self._known, {}
        for worker in workers:
            key = (worker["name"], worker.get("epoch", 0))
            known = before.pop(key, None)
            self._known[key] = self._seen(known, worker, version, now)
        for known in before.values():
            if len(self._gone) == _KEPT_GONE:
                self._whole_before = self._gone[0][0]
            self._gone.append((version, known.number))

    def since(self, version: int) -> dict[str, Any]:
        """Return what a reader of that version lacks; 0: it has nothing."""
        whole = version <= self._whole_before
        least = 0 if whole else version
        who = [(k.number, *k.who) for k in self._known.values() if k.version > least]
        how = [(k.number, *k.how) for k in self._known.values() if k.how_version > least]
        gone = [] if whole else [number for v, number in self._gone if v > version]
        return {
            "whole": whole,
            "gone": gone,
            "who": _columns(("id", *WHO), who),
            "how": _columns(("id", *HOW), how),
        }

    def _seen(self, known: _Known | None, worker: Worker, version: int, now: float) -> _Known:
        get = worker.get  # asked a dozen times of each of a thousand workers, every second
        heard_s = get("heard_s")
        at = now - (heard_s or 0.0)
        counts = (get("pulled_tokens", 0), get("passed_tokens", 0))
        if known is None:
            self._next_number += 1
            who = (worker["name"], *(get(name) for name in _OF_WHO))
            known = _Known(self._next_number, who, version, _Flows(at, counts))
        known.flows.see(at, counts)
        how = (
            get("role"),
            _state(get("draining"), heard_s),
            get("running"),
            get("waiting"),
            get("queued_tokens"),
            get("used_blocks"),
            get("cached_blocks"),
            get("prefix_queries"),
            get("prefix_hits"),
            *known.flows.rates,
        )
        if how != known.how:
            known.how, known.how_version = how, version
        return known


def _state(draining: object, heard_s: float | None) -> int:
    if heard_s is None:
        return UNHEARD
    if heard_s > _SILENT_S:
        return SILENT
    return DRAINING if draining else SERVING


def _columns(names: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Any]]:
    if not rows:
        return {}
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
