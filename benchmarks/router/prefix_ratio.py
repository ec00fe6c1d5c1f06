"""What KV-aware placement is worth, by how much of the prompts is shared: 10 to 90 %.

    python benchmarks/router/prefix_ratio.py [--quick] [--json FILE] [--csv FILE] [--png FILE]
    python benchmarks/router/prefix_ratio.py --virtual               # on a virtual clock
    python benchmarks/router/prefix_ratio.py --url http://HOST:PORT  # an endpoint that runs

Each prompt is one of some common beginnings and a rest of its own; requests come at random times.
The API, the router and the workers' scheduling, caches and hand-over are the real ones, on mock
workers (docs/mocker.md), all of which do both halves (aggregated), or prompts here and answers
there (disaggregated). `kv` and `round_robin` take turns and get the same requests. --virtual leaves
out sockets and processes: the same figures on every machine. The hit rate is the share of prompt
tokens that nobody had to compute; with --url, what the answers tell of it. Exit status 1 when a
goal is missed; with --url there are none.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import turns
from benchmarks.router.completions import Address, authorization
from benchmarks.router.curves import Panel, draw, write_csv
from benchmarks.router.mock_deployment import Endpoint, MockDeployment
from benchmarks.router.prefix_load import Load, Result, Target, ask, measure, middle
from benchmarks.router.virtual_deployment import VirtualDeployment
from stafette.workers.mocker.speed_profile import Profile

TITLE = "Placement by shared prefixes, on mock workers"
RATIOS, QUICK_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0.1, 0.5, 0.9)
KV, ROUND_ROBIN = "kv", "round_robin"
MODES = {
    "aggregated": {f"b{number}": "both" for number in range(8)},
    "disaggregated": {f"{role[0]}{n}": role for role in ("prefill", "decode") for n in range(4)},
}
RATES = {"aggregated": 14.0, "disaggregated": 10.0}  # requests a second: four compute prompts there
NUM_BLOCKS = 4_096  # of a worker: not all beginnings fit at 0.9 beside what is computed
# Slower than a GPU by half an order: the client, the API and the workers share two cores.
PROFILE = Profile(
    step_ms=20.0,
    prefill_ms_per_token=0.06,
    prefill_ms_per_pair=3.2e-6,
    decode_ms_per_seq=0.08,
    decode_ms_per_kv_token=8e-5,
    transfer_gb_s=10.0,
)
QUICK_REQUESTS = 36
HEADERS = (
    "mode",
    "policy",
    "prefix ratio",
    "TTFT mean ms",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "answer mean ms",
    "requests/s",
    "hit %",
)


class Sweep:
    """Results by (mode, policy, ratio); medians of the rounds."""

    def __init__(self, load: Load, ratios: Sequence[float], rounds: int, seed: int) -> None:
        self.load = load
        self.ratios = ratios
        self.rounds = rounds
        self.found: dict[tuple[str, str, float], list[Result]] = {}
        self.late_ms: list[float] = []  # of a step, by deployment
        self._seed = seed  # a cache that lives on must not know the prompts

    def run(self, mode: str, targets: Mapping[str, Target], load: Load | None = None) -> None:
        for ratio in self.ratios:
            for number, policy in turns(list(targets), self.rounds):
                seed = self._seed + 1_000 * number + round(100 * ratio)
                result = measure(targets[policy], ask(load or self.load, ratio, seed))
                self._note((mode, policy, ratio), result)

    def rows(self) -> Iterator[list[object]]:
        for mode, policy, ratio in self.found:
            values = self.medians(mode, policy, ratio)
            yield [mode, policy, ratio, *(getattr(values, name) for name in Result.__slots__)]

    def medians(self, mode: str, policy: str, ratio: float) -> Result:
        return middle(self.found[mode, policy, ratio])

    def _note(self, point: tuple[str, str, float], result: Result) -> None:
        self.found.setdefault(point, []).append(result)
        mode, policy, ratio = point
        shown = f"TTFT {result.ttft_mean_ms:,.0f} ms, {result.requests_s:.1f} requests/s"
        print(f"{mode} {policy} {ratio}: {shown}, {result.hit_percent:.0f} % hits", file=sys.stderr)


def run_mock(sweep: Sweep, virtual: bool) -> None:
    for mode, roles in MODES.items():
        load = replace(sweep.load, requests_s=RATES[mode])
        if virtual:
            sweep.run(mode, _virtual(roles), load)
        else:
            _run_processes(sweep, mode, load)


def _virtual(roles: Mapping[str, str]) -> dict[str, Target]:
    return {p: VirtualDeployment(roles, p, PROFILE, NUM_BLOCKS) for p in (KV, ROUND_ROBIN)}


def _run_processes(sweep: Sweep, mode: str, load: Load) -> None:
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        targets = {
            policy: stack.enter_context(
                MockDeployment(MODES[mode], policy, PROFILE, NUM_BLOCKS, Path(logs))
            )
            for policy in (KV, ROUND_ROBIN)
        }
        sweep.run(mode, targets, load)
        for target in targets.values():
            stats = target.stats()
            sweep.late_ms.append(1e3 * stats["late_seconds"] / max(1, stats["steps"]))


def goals(sweep: Sweep, report: Report) -> None:
    """The worst ratio of each mode is shown."""
    for mode in MODES:
        pairs = [
            (ratio, sweep.medians(mode, KV, ratio), sweep.medians(mode, ROUND_ROBIN, ratio))
            for ratio in sweep.ratios
        ]
        gained = min(ours.hit_percent - theirs.hit_percent for _, ours, theirs in pairs)
        total = max(ours.total_mean_ms / theirs.total_mean_ms for _, ours, theirs in pairs)
        first = max(o.ttft_mean_ms / t.ttft_mean_ms for ratio, o, t in pairs if ratio >= 0.5)
        report.goal(Goal(f"{mode}: hits above round robin's, points", gained, at_least=0.0))
        report.goal(Goal(f"{mode}: TTFT mean at ≥ 0.5, of round robin's", first, at_most=1.0))
        report.goal(Goal(f"{mode}: answer mean, of round robin's", total, at_most=1.05))


def chart(path: str, sweep: Sweep) -> None:
    shown = (
        ("ttft_mean_ms", "TTFT mean, ms"),
        ("total_mean_ms", "answer mean, ms"),
        ("hit_percent", "hit %"),
    )
    modes = list(dict.fromkeys(mode for mode, _, _ in sweep.found))
    panels = [
        Panel(f"{mode}: {title}", "prefix ratio", title, _curves(sweep, mode, name))
        for mode in modes
        for name, title in shown
    ]
    draw(path, TITLE, panels, columns=len(shown))


def _curves(sweep: Sweep, mode: str, name: str) -> dict[str, list[tuple[float, float | None]]]:
    policies = dict.fromkeys(policy for each, policy, _ in sweep.found if each == mode)
    return {
        policy: [(r, getattr(sweep.medians(mode, policy, r), name)) for r in sweep.ratios]
        for policy in policies
    }


def _endpoint(url: str) -> Address:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise SystemExit(f"--url {url}: must be http://HOST:PORT")
    return parts.hostname, parts.port or 80


def _model_of(url: str) -> str:
    request = Request(f"{url.rstrip('/')}/v1/models", headers=authorization())
    with urlopen(request, timeout=30.0) as answer:
        name: str = json.load(answer)["data"][0]["id"]
    return name


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add, load = parser.add_argument, Load()
    add("--quick", action="store_true", help="three ratios, fewer requests, one round")
    add("--virtual", action="store_true", help="on a virtual clock, without processes")
    add("--url", help="measure an endpoint that runs, instead of mock workers")
    add("--model", help="its name at --url; default: the first that it serves")
    add("--rate", type=float, default=load.requests_s, help="requests a second at --url")
    add("--rounds", type=int)
    add("--requests", type=int)
    add("--prompt-tokens", type=int, default=load.prompt_tokens)
    add("--output-tokens", type=int, default=load.output_tokens)
    add("--beginnings", type=int, default=load.beginnings)
    add("--json", metavar="FILE")
    add("--csv", metavar="FILE")
    add("--png", metavar="FILE")
    return parser.parse_args()


def main() -> int:
    asked = parse()
    load = Load(
        asked.requests or (QUICK_REQUESTS if asked.quick else Load().requests),
        asked.rate,
        asked.prompt_tokens,
        asked.output_tokens,
        asked.beginnings,
    )
    rounds = asked.rounds or (1 if asked.quick else 3)
    seed = random.SystemRandom().getrandbits(32) if asked.url else 0
    sweep = Sweep(load, QUICK_RATIOS if asked.quick else RATIOS, rounds, seed)
    report = Report(TITLE)
    if asked.url:
        address, model = _endpoint(asked.url), asked.model or _model_of(asked.url)
        sweep.run("endpoint", {"its own": Endpoint(address, model)})
    else:
        run_mock(sweep, asked.virtual)
        goals(sweep, report)
    if sweep.late_ms:
        report.note(f"steps of the mock workers were {max(sweep.late_ms):.1f} ms late on average")
    rows = list(sweep.rows())
    report.table(f"{load.requests} requests a point, medians of {rounds} rounds", HEADERS, rows)
    if asked.csv:
        write_csv(asked.csv, HEADERS, rows)
    if asked.png:
        chart(asked.png, sweep)
    return report.finish(asked.json)


if __name__ == "__main__":
    raise SystemExit(main())
