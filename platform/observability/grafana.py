"""A dashboard as the JSON that Grafana imports."""

import json
from collections.abc import Iterator
from typing import Any

from stafette.platform.observability.dashboards import Dashboard, Panel

_SCHEMA_VERSION = 39  # of Grafana 10.4 and later
_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def document(dashboard: Dashboard) -> str:
    made = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["stafette"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_panels(dashboard)),
    }
    return json.dumps(made, indent=1) + "\n"


def _variables() -> list[dict[str, Any]]:
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    job = {
        "name": "job",
        "label": "Fleet",
        "type": "query",
        "datasource": _SOURCE,
        "query": "label_values(stafette_node_processes, job)",
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
    return [source, job]


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for row in dashboard.rows:
        number += 1
        place = {"h": 1, "w": 24, "x": 0, "y": y}
        yield {"id": number, "type": "row", "title": row.title, "gridPos": place, "panels": []}
        y += 1
        for index, panel in enumerate(row.panels):
            number += 1
            column, line = index % _PER_ROW, index // _PER_ROW
            place = {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": y + line * _HEIGHT}
            yield {"id": number, "gridPos": place, **_panel(panel)}
        y += -(-len(row.panels) // _PER_ROW) * _HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + n), "expr": query.expr, "legendFormat": query.legend or "__auto"}
        for n, query in enumerate(panel.queries)
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }
