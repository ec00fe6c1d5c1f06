"""The alerts as files: for Prometheus as it is, and as a template of the Helm chart."""

import json
from collections.abc import Iterable, Mapping

from stafette.platform.observability.alerts import Alert, alerts

_MADE = "Made by `python charts/generate.py` of platform/observability/alerts.py."


def rules_file(values: Mapping[str, float]) -> str:
    """Return a file for Prometheus, of any fleet; `values` are the chart's defaults."""
    words = {name: f"{value:g}" for name, value in values.items()}
    words |= {"own": 'job=~".+"', "ray": 'job=~".+"', "bound": bound(values["firstTokenSeconds"])}
    return f"# {_MADE}\n{_groups([each.filled(words) for each in alerts()])}\n"


def rules_template(values: Iterable[str]) -> str:
    """Return what stands in the chart's PrometheusRule, in which the values are the user's."""
    words = {name: f"{{{{ .{name} }}}}" for name in values}
    # Between spaces, or a template would begin with the query's own brace.
    words |= {"own": " {{ $own }} ", "ray": " {{ $ray }} ", "bound": "{{ $bound }}"}
    return _groups([each.filled(words) for each in alerts()])


def bound(seconds: float) -> str:
    """Return a histogram's bound as its label has it."""
    return str(float(seconds))


def _groups(found: list[Alert]) -> str:
    lines = ["groups:", "  - name: stafette", "    rules:"]
    for each in found:
        expr = each.expr.replace(" and ", f"\n{' ' * 10}and ")
        lines += [f"      - alert: {each.name}", "        expr: |-", f"          {expr}"]
        if each.lasts:
            lines.append(f"        for: {each.lasts}")
        lines += [
            f"        labels: {{severity: {each.severity}}}",
            "        annotations:",
            f"          summary: {json.dumps(each.summary)}",
        ]
    return "\n".join(lines)
