"""A simulation's results for a terminal."""

from collections.abc import Mapping, Sequence

from stafette.platform.twin.results import Results
from stafette.platform.twin.tally import percentile
from stafette.platform.twin.tiers import TierUse

Rows = Sequence[tuple[str, str]]


def summary_of(results: Results, took_s: float | None = None) -> str:
    rows = summary_rows(results)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if took_s is not None:
        speed = results.duration_s / took_s if took_s else 0.0
        lines.append(f"{'simulated in':<{width}}  {took_s:,.1f} s, {speed:,.0f} x real time")
    return "\n".join(lines)


def summary_rows(results: Results) -> Rows:
    output = sum(each.output_tokens for each in results.served)
    per_s = output / results.duration_s if results.duration_s else 0.0
    changes = sum(results.changes.values())
    gpu_hours = ", ".join(f"{name} {hours:,.2f}" for name, hours in results.gpu_hours.items())
    counters = results.counters
    rows = [
        ("requests", _requests(results)),
        ("promises kept", _promises(results)),
        ("time to first token", _times(results.ttft_ms, results.slo.ttft_ms)),
        ("between tokens, mean of each", _times(results.itl_ms, results.slo.itl_ms)),
        ("between tokens, all", _times(results.token_gap_ms, None)),
        ("throughput", f"{per_s:,.0f} tokens/s over {results.duration_s:,.0f} s"),
        ("prompt tokens found cached", f"{100 * results.hit_share:.1f} %"),
        *((f"found on the {name}", _tier(use)) for name, use in results.tiers.items()),
        ("GPU-hours", f"{results.all_gpu_hours:,.2f} ({gpu_hours}), cost {results.cost:,.2f}"),
        ("changes of replicas", f"{changes}"),
    ]
    if counters["handed_over"] or counters["pulled"]:
        told = f"{counters['handed_over']:,} prompts, {counters['pulled']:,} with pulled blocks"
        rows.append(("handed over", told))
    if counters["moved"] or counters["lost"]:
        told = f"{counters['moved']:,} from drains, {counters['lost']:,} after losses"
        rows.append(("went on elsewhere", told))
    return rows


def _requests(results: Results) -> str:
    failed = sum(results.failures.values())
    why = "; ".join(f"{count} x {reason}" for reason, count in results.failures.items())
    return f"{results.arrivals:,}, {failed:,} failed" + (f" ({why})" if why else "")


def _promises(results: Results) -> str:
    slo = results.slo
    ttft = percentile([each.ttft_s * 1e3 for each in results.served], slo.ttft_percentile)
    itls = [each.itl_s * 1e3 for each in results.served if each.itl_s is not None]
    itl = percentile(itls, slo.itl_percentile)
    return (
        f"{100 * results.attainment:.2f} % of requests; first token p{slo.ttft_percentile:g} "
        f"{ttft:,.0f} of {slo.ttft_ms:,.0f} ms, between tokens p{slo.itl_percentile:g} "
        f"{itl:,.1f} of {slo.itl_ms:,.1f} ms"
    )


def _tier(use: TierUse) -> str:
    told = f"{100 * use.found_share:.1f} % of prompts' blocks"
    if use.stored_tokens:
        told += f"; {use.stored_tokens:,} tokens stored, {use.evicted_tokens:,} evicted"
        told += f", {100 * use.usage:.0f} % full at the end"
    if use.lost_tokens:
        told += f"; {use.lost_tokens:,} not written to disk in time"
    return told


def _times(spread_ms: Mapping[str, float], limit_ms: float | None) -> str:
    told = ", ".join(f"{name} {value:,.1f}" for name, value in spread_ms.items())
    limit = "" if limit_ms is None else f" (limit {limit_ms:,.0f})"
    return f"{told} ms{limit}"
