"""Makes kuberay.json, what KubeRay's custom resources may hold, of its published definitions.

    python tests/charts/vendor_crds.py ray.io_rayservices.yaml ray.io_rayjobs.yaml

Descriptions are left out, parts that occur more than once are written once, and no other fields may
stand in an object: an API server that is asked to be strict says the same. KubeRay is Apache-2.0.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).with_name("kuberay.json")
_LEFT_OUT = {"description", "format", "x-kubernetes-validations"}
_SHARED_CHARS = 300


def schema_of(definition: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a definition's version v1, without its status."""
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    made = _strict(version["schema"]["openAPIV3Schema"])
    del made["properties"]["status"]
    made["properties"]["metadata"] = {"type": "object"}
    return made


def _strict(part: Any) -> Any:
    if isinstance(part, list):
        return [_strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {name: _strict(each) for name, each in part.items() if name not in _LEFT_OUT}
    if isinstance(properties := part.get("properties"), dict):
        kept["properties"] = {name: _strict(each) for name, each in properties.items()}
        open_ended = part.get("x-kubernetes-preserve-unknown-fields")
        kept["additionalProperties"] = bool(open_ended)
        defaulted = {name for name, each in properties.items() if "default" in each}
        kept["required"] = sorted(set(part.get("required", ())) - defaulted)
    return {name: each for name, each in kept.items() if not name.startswith("x-kubernetes")}


def shared(schemas: dict[str, Any]) -> dict[str, Any]:
    """Write parts that occur more than once only once, under $defs."""
    counts: Counter[str] = Counter()
    definitions: dict[str, Any] = {}
    names: dict[str, str] = {}

    def count(part: Any) -> None:
        if isinstance(part, dict):
            if len(text := json.dumps(part)) > _SHARED_CHARS and isinstance(part.get("type"), str):
                counts[text] += 1
            part = list(part.values())
        if isinstance(part, list):
            for each in part:
                count(each)

    def replaced(part: Any, inside: str = "") -> Any:
        if isinstance(part, list):
            return [replaced(each) for each in part]
        if not isinstance(part, dict):
            return part
        text = json.dumps(part)
        if text == inside or counts[text] < 2:
            return {name: replaced(each) for name, each in part.items()}
        if text not in names:
            names[text] = f"part{len(names)}"
            definitions[names[text]] = replaced(part, text)
        return {"$ref": f"#/$defs/{names[text]}"}

    count(schemas)
    return replaced(schemas) | {"$defs": definitions}


def main(paths: list[str]) -> None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definitions = [yaml.load(Path(path).read_text(), loader) for path in paths]
    schemas = {each["spec"]["names"]["kind"]: schema_of(each) for each in definitions}
    OUT.write_text(json.dumps(shared(schemas), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
