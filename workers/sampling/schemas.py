"""Finds JSON schemas that no finite value can match, because they require themselves."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote


def endless(schema: Any) -> bool:
    """Return whether every value of `schema` would have to contain another, without end.

    Looks at structure alone: a schema that contradicts itself is for the compiler to find.
    """
    return not _Finite(schema).may_end(schema)


class _Finite:
    """Walks a schema; a reference met again on the way to itself is one that never ends."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._open: set[str] = set()

    def may_end(self, schema: Any) -> bool:
        if not isinstance(schema, Mapping) or "enum" in schema or "const" in schema:
            return True
        return (
            self._reference_may_end(schema.get("$ref"))
            and all(self.may_end(part) for part in _listed(schema.get("allOf")))
            and self._some_may_end(schema.get("anyOf"))
            and self._some_may_end(schema.get("oneOf"))
            and self._parts_may_end(schema)
        )

    def _some_may_end(self, parts: Any) -> bool:
        options = _listed(parts)
        return not options or any(self.may_end(part) for part in options)

    def _parts_may_end(self, schema: Mapping[str, Any]) -> bool:
        kinds = schema.get("type", "object" if "properties" in schema else "array")
        ways = [self._kind_may_end(kind, schema) for kind in _listed(kinds) or [kinds]]
        return any(ways)

    def _kind_may_end(self, kind: Any, schema: Mapping[str, Any]) -> bool:
        if kind == "object":
            properties = schema.get("properties")
            known = properties if isinstance(properties, Mapping) else {}
            return all(self.may_end(known.get(name)) for name in _listed(schema.get("required")))
        if kind == "array" and "items" in schema:
            least = schema.get("minItems", 0)
            return (
                not least
                or bool(_listed(schema.get("prefixItems")))
                or self.may_end(schema["items"])
            )
        return True

    def _reference_may_end(self, reference: Any) -> bool:
        if not isinstance(reference, str) or not reference.startswith("#"):
            return True
        if reference in self._open:
            return False
        self._open.add(reference)
        try:
            return self.may_end(_resolve(self._root, reference))
        finally:
            self._open.discard(reference)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _resolve(root: Any, reference: str) -> Any:
    """Return what a `#/path` points to, or None: the compiler names a broken one."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping):
            found = found.get(key)
        else:
            return None
    return found
