"""Decisions and workers as text, for people: what a terminal shows of the service's answers."""

from collections.abc import Mapping, Sequence
from typing import Any

_TIERS = ("device", "host", "disk", "peer")
_LOADS = ("waiting", "running", "used_blocks")
_SHORT = {"used_blocks": "blocks"}


def tell_decisions(answer: Mapping[str, Any]) -> str:
    decisions = answer["decisions"]
    if not decisions:
        return "no decision was made yet"
    return "\n\n".join(map(tell_decision, decisions))


def tell_decision(decision: Mapping[str, Any]) -> str:
    """Return one decision: what was chosen, every option with its costs, who was left out."""
    return "\n".join(
        [_headline(decision), _outcome(decision), *_options(decision), *_out(decision)]
    )


def tell_workers(answer: Mapping[str, Any]) -> str:
    headers = ["worker", "model", "role", "state", "cached", "queue ms", "waiting", "running"]
    headers += ["blocks", "of", "busy"]
    rows = [headers]
    for one in answer["workers"]:
        load = one["load"]
        numbers = [one["cached_blocks"], load["queue_ms"], load["waiting"], load["running"]]
        numbers += [load["used_blocks"], one["total_blocks"] or "-", f"{load['utilization']:.0%}"]
        rows.append(
            [one["worker"], one["model"] or "-", one["role"], _state(one), *_cells(numbers)]
        )
    index, routers = answer["index"], answer["routers"]
    lines = table(rows) if len(rows) > 1 else ["no worker is registered"]
    lines.append(
        f"{index['blocks']:,} blocks known, {answer['reservations']:,} requests placed, "
        f"{answer['waiting']:,} waiting"
    )
    if routers:
        lines.append(f"other routers: {', '.join(routers)}")
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Return lines; the first column is text, the others are numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        (indent + row[0].ljust(widths[0]) + "".join(
            f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)
        )).rstrip()
        for row in rows
    ]  # fmt: skip


def _headline(decision: Mapping[str, Any]) -> str:
    chosen = decision["chosen"]
    where = chosen["decode"] + (f", prefill on {chosen['prefill']}" if chosen["prefill"] else "")
    return (
        f"{decision['request_id']}: {decision['prompt_tokens']:,} tokens to {where}  "
        f"({decision['policy']}, {decision['age_s']:.1f} s ago, "
        f"{decision['num_candidates']} candidates, margin {decision['margin']:.2f} ms)"
    )


def _outcome(decision: Mapping[str, Any]) -> str:
    predicted, actual = decision["predicted"], decision["actual"]
    words = [
        f"  predicted {predicted['cached_tokens']:,} cached "
        f"(best anywhere {decision['best_cached_tokens']:,}), {predicted['ttft_ms']:.1f} ms"
    ]
    if actual["ttft_ms"] is not None:
        cached = actual["cached_tokens"]
        words.append(f"actual {'?' if cached is None else format(cached, ',')} cached")
        words[-1] += f", {actual['ttft_ms']:.1f} ms; regret {decision['regret_ms']:.1f} ms"
    return "; ".join(words)


def _options(decision: Mapping[str, Any]) -> list[str]:
    """One line an option, the cheapest first; terms that are 0 everywhere are not shown."""
    options = decision["options"]
    terms = list(dict.fromkeys(name for option in options for name in option["terms"]))
    terms = [name for name in terms if any(option["terms"].get(name) for option in options)]
    tiers = [t for t in _TIERS if any(_overlap(option).get(t) for option in options)] or ["device"]
    rows = [["", *tiers, *(_SHORT.get(n, n) for n in _LOADS), "|", *terms, "| cost", "ttft ms"]]
    for option in options:
        mark = "* " if _is_chosen(option, decision) else "  "
        load = option["decode_load"]
        cells = [_overlap(option).get(tier, 0) for tier in tiers]
        cells += [load[name] for name in _LOADS]
        costs = [option["terms"].get(name, 0.0) for name in terms]
        costs += [option["cost"], option["ttft_ms"]]
        rows.append([mark + _named(option), *_cells(cells), "|", *_cells(costs)])
    hidden = decision["num_candidates"] - len(options)
    more = [f"    and {hidden} more candidates"] if hidden > 0 and not _pairs(options) else []
    return [*table(rows, "  "), *more]


def _out(decision: Mapping[str, Any]) -> list[str]:
    left_out = decision["left_out"]
    lines = [f"  left out: {name}: {reason}" for name, reason in left_out.items()]
    hidden = decision["num_left_out"] - len(left_out)
    return [*lines, f"  and {hidden} more left out"] if hidden > 0 else lines


def _is_chosen(option: Mapping[str, Any], decision: Mapping[str, Any]) -> bool:
    chosen = decision["chosen"]
    return (option["decode"], option["prefill"]) == (chosen["decode"], chosen["prefill"])


def _named(option: Mapping[str, Any]) -> str:
    name = f"{option['prefill']} > {option['decode']}" if option["prefill"] else option["decode"]
    source = option["source"]
    return f"{name} < {source['blocks']} blocks of {source['target']}" if source else str(name)


def _overlap(option: Mapping[str, Any]) -> Mapping[str, int]:
    """Of the one that computes the prompt."""
    found: Mapping[str, int] = option.get("prefill_overlap") or option["decode_overlap"]
    return found


def _pairs(options: Sequence[Mapping[str, Any]]) -> bool:
    return any(option["prefill"] for option in options)


def _state(worker: Mapping[str, Any]) -> str:
    if not worker["healthy"]:
        return f"away: {', '.join(worker['why'])}"
    return "draining" if worker["draining"] else "ready"


def _cells(values: Sequence[object]) -> list[str]:
    return [f"{value:,.2f}" if isinstance(value, float) else str(value) for value in values]
