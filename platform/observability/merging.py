"""Puts the metrics of several processes together: each family once, with everybody's samples."""

from collections.abc import Iterable

_HELP, _TYPE = b"# HELP ", b"# TYPE "


def merged(pages: Iterable[bytes]) -> bytes:
    """Join texts of Prometheus' format. Their samples must bear labels that tell them apart."""
    heads: dict[bytes, bytes] = {}  # by the family's name
    samples: dict[bytes, list[bytes]] = {}
    for page in pages:
        for family in page.split(b"\n" + _HELP):
            name, head, lines = _read(family.removeprefix(_HELP))
            heads.setdefault(name, head)
            samples.setdefault(name, []).append(lines)
    parts = [part for name, head in heads.items() for part in (head, *samples[name])]
    return b"".join(parts)


def _read(family: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a family's name, its two lines of comment, and its samples."""
    about, _, rest = family.partition(b"\n")
    kind, _, lines = rest.partition(b"\n")
    end = b"" if not lines or lines.endswith(b"\n") else b"\n"
    return about.split(b" ", 1)[0], _HELP + about + b"\n" + kind + b"\n", lines + end
