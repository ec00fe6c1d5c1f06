"""A simulation's results as one page that needs nothing beside it."""

from collections.abc import Sequence
from html import escape

from stafette.platform.twin.charts import Points, line_chart
from stafette.platform.twin.results import Results
from stafette.platform.twin.summary import summary_rows
from stafette.platform.twin.tally import percentile
from stafette.platform.twin.timeline import Moment

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:760px;color:#222}"
    "td{padding:.1em 1em .1em 0;vertical-align:top}svg{display:block;margin:1em 0;"
    "max-width:100%;height:auto;font:11px system-ui,sans-serif}"
)


def html_of(results: Results, name: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>"
        for what, value in summary_rows(results)
    )
    return page_of(f"Simulation: {name}", f"<table>{rows}</table>{''.join(_charts(results))}")


def page_of(title: str, body: str) -> str:
    """Return a whole page around a body that is HTML already."""
    shown = escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{shown}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{shown}</h1>{body}</body></html>\n"
    )


def _charts(results: Results) -> Sequence[str]:
    moments = results.timeline
    replicas = {
        pool: [(m.at_s, float(sum(m.replicas[pool].values()))) for m in moments]
        for pool in results.gpu_hours
    }
    roles = {
        role: [(m.at_s, float(m.roles[role])) for m in moments]
        for role in ("prefill", "decode", "both")
        if any(m.roles[role] for m in moments)
    }
    kept: Points = [
        (at_s, None if share is None else 100 * share) for at_s, share in results.kept_by_bin
    ]
    return [
        line_chart("Promises kept, % of those who came", {"kept": kept}, most=100.0),
        line_chart("Replicas, with those that start and drain", replicas, steps=True),
        line_chart("Workers that serve, by role", roles, steps=True),
        line_chart("Requests that came, 1/s", {"came": _rates(moments, "arrivals")}),
        line_chart("Tokens out, 1/s", {"tokens": _rates(moments, "output_tokens")}),
        line_chart(
            "Requests under way",
            {
                name: [(m.at_s, float(getattr(m, name))) for m in moments]
                for name in ("waiting", "prefilling", "decoding")
            },
        ),
        line_chart("Time to first token, ms, by when it came", _ttfts(results)),
    ]


def _rates(moments: Sequence[Moment], name: str) -> Points:
    """Return counts of each bin as rates."""
    return [
        (after.at_s, getattr(after, name) / (after.at_s - before.at_s))
        for before, after in zip(moments, moments[1:], strict=False)
    ]


def _ttfts(results: Results) -> dict[str, Points]:
    times = [at_s for at_s, _ in results.kept_by_bin]
    bin_s = times[1] - times[0] if len(times) > 1 else max(results.duration_s, 1.0)
    by_bin: dict[int, list[float]] = {}
    for each in results.served:
        by_bin.setdefault(int(each.at_s / bin_s), []).append(each.ttft_s * 1e3)
    return {
        f"p{percent}": [
            (number * bin_s, percentile(by_bin[number], percent) if number in by_bin else None)
            for number in range(len(times))
        ]
        for percent in (50, 95)
    }
