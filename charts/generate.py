# ruff: noqa: INP001
"""Makes the chart's schema, README, alerts and dashboards of what stands elsewhere already.

    python charts/generate.py

The schema is schema.yaml with stafette's own settings as `config`; the README's table is
values.yaml with its comments; alerts and dashboards are platform/observability's. A test checks
that all are up to date.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from stafette.platform.config import Config
from stafette.platform.config_showing import schema
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.observability.dashboards import dashboards
from stafette.platform.observability.grafana import document
from stafette.platform.observability.rules_files import rules_file, rules_template

CHARTS = Path(__file__).parent
CHART = CHARTS / "stafette"

_README = """# The Helm chart of stafette

How to install it, and what upgrades and losses do:
[docs/kubernetes.md](../../docs/kubernetes.md).
`values-laptop.yaml`, `values-node8.yaml` and `values-fleet64.yaml` are examples.

`config` takes whatever `stafette config schema` shows, but for secrets. A group takes {group}.

| value | default | |
|---|---|---|
"""


def values_schema() -> str:
    """Return the schema of all values, in which nothing else may stand."""
    made: dict[str, Any] = yaml.safe_load((CHARTS / "schema.yaml").read_text())
    made["properties"]["config"] = _own_settings()
    alerts = made["properties"]["monitoring"]["properties"]["alerts"]["properties"]
    alerts["firstTokenSeconds"] = {"enum": list(Metrics().time_to_first_token.bounds)}
    draft = {"$schema": "http://json-schema.org/draft-07/schema#"}
    return json.dumps(_closed(draft | made), indent=1) + "\n"


def readme() -> str:
    group = yaml.safe_load((CHARTS / "schema.yaml").read_text())["definitions"]["group"]
    text = (CHART / "values.yaml").read_text()
    rows = [f"| `{path}` | {_code(value)} | {about} |" for path, value, about in _values(text)]
    names = ", ".join(f"`{name}`" for name in group["properties"])
    return _README.format(group=names) + "\n".join(rows) + "\n"


def made() -> dict[str, str]:
    """Return every file that is made, by its path in the chart."""
    thresholds = yaml.safe_load((CHART / "values.yaml").read_text())["monitoring"]["alerts"]
    rules = rules_template(thresholds).replace("\n", "\n  ")
    return {
        "values.schema.json": values_schema(),
        "README.md": readme(),
        "rules/stafette.yaml": rules_file(thresholds),
        "templates/prometheusrule.yaml": (CHARTS / "prometheusrule.yaml")
        .read_text()
        .replace("RULES", rules),
        **{f"dashboards/{each.uid}.json": document(each) for each in dashboards()},
    }


def main() -> None:
    for path, text in made().items():
        (CHART / path).parent.mkdir(exist_ok=True)
        (CHART / path).write_text(text)


def _own_settings() -> dict[str, Any]:
    """Return our settings' schema, less what a chart may not say: secrets, Serve's proxies."""
    own = schema(Config)
    settings = own["properties"]
    del settings["cluster"]["properties"]["token"]
    for name in ("user", "password"):
        del settings["discovery"]["properties"]["etcd"]["properties"][name]
    settings["frontend"]["properties"]["ingress"] = {"const": "own", "default": "own"}
    settings["frontend"]["properties"]["port"] |= {"minimum": 1024, "maximum": 65_535}
    made: dict[str, Any] = _of_text(own)
    return made | {"required": ["name", "model", "pools", "frontend"]}


def _of_text(part: Any) -> Any:
    """Hold every string to what YAML can hold, as schema.yaml does."""
    if isinstance(part, list):
        return [_of_text(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "string" and "enum" not in part:
        return {"$ref": "#/definitions/text"} | {k: v for k, v in part.items() if k == "default"}
    return {name: _of_text(each) for name, each in part.items()}


def _closed(part: Any) -> Any:
    """Refuse in each object with named properties all others."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {name: _closed(each) for name, each in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _values(text: str) -> Iterator[tuple[str, object, str]]:
    """Go through the values that have a comment behind them, or are plain."""
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, path: str) -> Iterator[tuple[str, object, str]]:
        for key, value in node.value:
            name = f"{path}{key.value}"
            _, _, about = lines[key.start_mark.line].partition("  # ")
            shown_whole = not isinstance(value, yaml.MappingNode) or value.flow_style
            if shown_whole or about:
                yield name, _plain(value) if shown_whole else None, about.strip()
            if not shown_whole:
                yield from walk(value, f"{name}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return walk(root, "")


def _plain(node: yaml.Node) -> object:
    return yaml.safe_load(yaml.serialize(node))


def _code(value: object) -> str:
    return "" if value is None else f"`{json.dumps(value)}`".replace("|", "\\|")


if __name__ == "__main__":
    main()
