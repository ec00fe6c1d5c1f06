"""Which load the flags of `stafette bench run` ask for: one shape, and only its own flags."""

import argparse
import logging
import os
from collections.abc import Mapping
from typing import Any

from stafette.platform.bench.load import Shape
from stafette.platform.bench.shapes.concurrency import DEFAULT_CONCURRENCIES, ConcurrencyShape
from stafette.platform.bench.shapes.prefixes import DEFAULT_RATIOS, PrefixShape
from stafette.platform.bench.shapes.rate import RateShape
from stafette.platform.bench.shapes.sessions import SessionsShape
from stafette.platform.bench.shapes.traces import TraceShape
from stafette.platform.frontend.errors import InvalidSetting

CONCURRENCIES = "CONCURRENCIES"
_log = logging.getLogger(__name__)
# What makes a shape, and what only that shape understands.
_SHAPES: Mapping[str, tuple[str, ...]] = {
    "concurrencies": (),
    "rates": ("arrivals", "burstiness"),
    "sessions": ("turns", "turn_tokens", "think_s"),
    "prefix_ratios": ("prefixes", "concurrency"),
    "trace": ("speedup", "max_isl", "max_osl"),
}


def shape_of(arguments: argparse.Namespace) -> Shape:
    given = [name for name in _SHAPES if getattr(arguments, name) is not None]
    if len(given) > 1:
        remedy = f"does not go with {_flag(given[0])}: a benchmark has one shape of load"
        raise InvalidSetting(_flag(given[1]), getattr(arguments, given[1]), remedy)
    kind = given[0] if given else "concurrencies"
    for other, own in _SHAPES.items():
        for name in own if other != kind else ():
            if getattr(arguments, name) is not None:
                remedy = f"means nothing without {_flag(other)}: leave it out"
                raise InvalidSetting(_flag(name), getattr(arguments, name), remedy)
    told = {name: getattr(arguments, name) for name in _SHAPES[kind]}
    return _made(kind, arguments, {k: v for k, v in told.items() if v is not None})


def read_concurrencies(text: str | None) -> tuple[int, ...]:
    """Return the levels of the environment; of a bad value the default, with a warning."""
    if not text or not text.strip():
        return DEFAULT_CONCURRENCIES
    try:
        found = tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        shown = ",".join(map(str, DEFAULT_CONCURRENCIES))
        _log.warning("%s = %r: is not like 1,2,5; taking %s", CONCURRENCIES, text, shown)
        return DEFAULT_CONCURRENCIES
    return tuple(sorted(set(found)))


def _made(kind: str, arguments: argparse.Namespace, own: dict[str, Any]) -> Shape:
    match kind:
        case "rates":
            if "burstiness" in own and own.get("arrivals") != "gamma":
                remedy = "is the shape of gamma: give --arrivals gamma as well"
                raise InvalidSetting("--burstiness", own["burstiness"], remedy)
            return RateShape(rates=tuple(arguments.rates), **own)
        case "sessions":
            return SessionsShape(sessions=tuple(arguments.sessions), **own)
        case "prefix_ratios":
            return PrefixShape(ratios=tuple(arguments.prefix_ratios) or DEFAULT_RATIOS, **own)
        case "trace":
            speedups = tuple(own.pop("speedup", (1.0,)))
            return TraceShape(file=arguments.trace, speedups=speedups, **own)
    if arguments.concurrencies is not None:
        return ConcurrencyShape(concurrencies=tuple(arguments.concurrencies))
    return ConcurrencyShape(concurrencies=read_concurrencies(os.environ.get(CONCURRENCIES)))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
