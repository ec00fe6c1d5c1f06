"""When is a prompt's first token there: computed here, or handed over by another engine?

    python benchmarks/workers/handover.py [--quick] [--json FILE]

Engines of the embedded model in processes of their own: one computes prompts, two others answer,
one reads by shared memory, one by TCP. For each length, in turns:

- alone: the answering engine computes the prompt;
- pulled: it takes the blocks from the other, which has them cached, and computes what is left;
- meanwhile: the other computes the prompt and passes its blocks on chunk by chunk.

All have the same cores to share. Goal: at 1,536 tokens, pulling takes at most a tenth of computing.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.child import Child
from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import alternate, middle, ratio
from stafette.kvtransfer.connectors.p2p.messages import Give, Take

LENGTHS = (512, 1_536)
GOAL_LENGTH = 1_536
GOAL_RATIO = 0.1
TRANSPORTS = ("shm", "tcp")
PATIENCE_S = 120.0
ENGINE = Path(__file__).with_name("handover_engine.py")
FLAGS = {
    "max_num_seqs": 4,
    "max_model_len": 2_048,
    "num_kv_blocks": 512,
    "max_num_batched_tokens": 256,  # a chunk
}


class Trial:
    """The engines, and what was found of them."""

    def __init__(self, logs: Path) -> None:
        self.prefill = _start("prefill", TRANSPORTS, logs)
        self.decode = {name: _start(name, (name,), logs) for name in TRANSPORTS}
        self.moved: dict[tuple[str, int], list[tuple[int, float]]] = {}
        self._count = 0
        ours = _ask(self.prefill, "metadata")["metadata"]
        for engine in self.decode.values():
            _ask(engine, "add_peer", metadata=ours)
            _ask(self.prefill, "add_peer", metadata=_ask(engine, "metadata")["metadata"])

    def run(self, way: str, length: int) -> float:
        """Return the milliseconds to the first token, on one of the ways."""
        self._count += 1
        kind, _, transport = way.partition(" ")
        name, engine = f"{way}-{self._count}", self.decode[transport or TRANSPORTS[0]]
        if kind == "alone":
            found = _ask(engine, "first_token", name=name, length=length, params={})
        elif kind == "pulled":
            found = self._pull(engine, name, length)
        else:
            found = self._meanwhile(engine, transport, name, length)
        if kind != "alone":
            assert found["cached"] == (length - 1) // 16 * 16, "something was not handed over"
            moved = self.moved.setdefault((transport, length), [])
            moved.append((found["bytes"], found["transfer_s"]))
        return float(found["ms"])

    def _pull(self, engine: Child, name: str, length: int) -> dict[str, Any]:
        _ask(self.prefill, "prefill", name=name, length=length, params={}, fresh=False)
        give = Give(name).params()  # to whoever comes with the tickets
        offered = _ask(self.prefill, "offer", name=name, length=length, params=give)
        return _ask(engine, "first_token", name=name, length=length, params=offered["params"])

    def _meanwhile(self, engine: Child, transport: str, name: str, length: int) -> dict[str, Any]:
        take, give = Take(name, ("prefill",)).params(), Give(name, (transport,)).params()
        _ask(engine, "begin_first_token", name=name, length=length, params=take)
        _ask(self.prefill, "prefill", name=name, length=length, params=give, fresh=True)
        return _ask(engine, "result")

    def close(self) -> None:
        for engine in (self.prefill, *self.decode.values()):
            engine.close()


def _start(name: str, transports: tuple[str, ...], logs: Path) -> Child:
    settings = json.dumps({"name": name, "transports": transports, "flags": FLAGS})
    return Child(name, [sys.executable, str(ENGINE), settings], logs / f"{name}.log")


def _ask(engine: Child, op: str, **arguments: Any) -> dict[str, Any]:
    return engine.ask({"op": op, **arguments}, PATIENCE_S, op)


@contextmanager
def running() -> Iterator[Trial]:
    with tempfile.TemporaryDirectory() as logs:
        trial = Trial(Path(logs))
        try:
            yield trial
        finally:
            trial.close()


def measure(rounds: int) -> Report:
    report = Report("Time to the first token: computed here, or handed over")
    ways = ["alone", *(f"{kind} {t}" for kind in ("pulled", "meanwhile") for t in TRANSPORTS)]
    times: dict[str, list[float | None]] = {way: [] for way in ways}
    with running() as trial:
        for length in LENGTHS:
            for way in ways:  # connections, and pages that are touched for the first time
                trial.run(way, length)
            for transport in TRANSPORTS:
                trial.moved[transport, length].clear()
            found = alternate(ways, rounds, partial(_run, trial, length))
            for way in ways:
                times[way].append(middle(found[way]))
        moved = trial.moved
    headers = ["milliseconds", *(f"{length:,} tokens" for length in LENGTHS)]
    report.table("Time to the first token", headers, [[way, *times[way]] for way in ways])
    for length in LENGTHS:
        _add_reads(report, length, {name: moved[name, length] for name in TRANSPORTS})
    place = LENGTHS.index(GOAL_LENGTH)
    for transport in TRANSPORTS:
        share = ratio(times[f"pulled {transport}"][place], times["alone"][place])
        name = f"{GOAL_LENGTH:,} tokens pulled by {transport}, of computing them"
        report.goal(Goal(name, share, at_most=GOAL_RATIO))
    return report


def _run(trial: Trial, length: int, way: str, _: int) -> float:
    return trial.run(way, length)


def _add_reads(report: Report, length: int, moved: dict[str, list[tuple[int, float]]]) -> None:
    """Tell what was read for one length, and how long that took."""
    rows: list[list[object]] = []
    for transport, reads in moved.items():
        nbytes, seconds = reads[0][0], middle([seconds for _, seconds in reads])
        rate = nbytes / seconds / 1e9 if seconds else None
        rows.append([transport, nbytes / 1e6, seconds and seconds * 1e3, rate])
    report.table(f"Reads, {length:,} tokens", ["by", "MB", "ms", "GB/s"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    return measure(3 if arguments.quick else 9).finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
