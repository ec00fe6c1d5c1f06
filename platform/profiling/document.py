"""A profile as a file: what was measured, the step model that fits it, and what fits into memory.

    {"format": "stafette.profile", "version": 2, "subject": {...}, "limits": {...},
     "points": [...], "errors": [...], "overheads": {...}, "model": {"step_ms": 6.0, ...}}

`model` is what a mock worker is told (`stafette.workers.mocker.speed_profile.Profile`).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.fitting import Fit, fit
from stafette.platform.profiling.points import FEATURES, Point
from stafette.workers.mocker.speed_profile import Profile

FORMAT = "stafette.profile"
VERSION = 2  # 1 had no transfers
_READABLE = (1, 2)
_STEP_TERMS = FEATURES[:5]
_PARTS = ("subject", "limits", "points", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a worker can hold at once. 0: not known."""

    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_model_len: int = 0
    kv_tokens: int = 0
    block_size: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                remedy = "must be a whole number, at least 0"
                raise InvalidSetting(f"limits.{each.name}", value, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`subject` says what was measured, or of what it was estimated."""

    subject: Mapping[str, Any]
    limits: Limits = Limits()
    points: tuple[Point, ...] = ()
    base: Profile = field(default_factory=Profile)  # has what no step tells of: bytes and transfer

    @property
    def fit(self) -> Fit:
        return fit(self.points)

    @property
    def model(self) -> Profile:
        """The step model of the points; what they do not tell of is the base's."""
        found = self.fit.terms
        terms: dict[str, Any] = {name: found[name] for name in _STEP_TERMS if name in found}
        per_mb = found.get("transfer_ms_per_mb", 0.0)
        if per_mb:  # a megabyte a millisecond is a gigabyte a second
            latency_ms = found.get("transfer_latency_ms", 0.0)
            terms |= {"transfer_gb_s": 1 / per_mb, "transfer_latency_ms": latency_ms}
        return replace(self.base, **terms)

    def has(self, name: str) -> bool:
        return any(point.name == name for point in self.points)

    def with_points(self, points: list[Point]) -> "Document":
        return replace(self, points=(*self.points, *points))

    def to_json(self) -> str:
        told: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        told |= {"subject": dict(self.subject), "limits": asdict(self.limits)}
        told["points"] = [point.to_dict() for point in self.points]
        told["model"] = asdict(self.base)
        if self.points:
            found = self.fit
            told["errors"] = [round(error, 4) for error in found.errors]
            told["overheads"] = {FEATURES[5]: found.terms.get(FEATURES[5], 0.0)}
            told["model"] = asdict(self.model)
        return json.dumps(told, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write it whole or not at all: who is interrupted keeps what there was."""
        beside = path.with_name(f".{path.name}.new")
        try:
            beside.write_text(self.to_json(), encoding="utf-8")
            os.replace(beside, path)
        except OSError as error:
            raise InvalidSetting("profile", str(path), f"cannot be written: {error}") from None


def read_document(path: Path) -> Document:
    """Read what `Document.write` made; InvalidSetting says what is wrong with anything else."""
    told = _read_object(path)
    if told.get("format") != FORMAT:
        remedy = f"is not a profile ({FORMAT}): make one with stafette profile or estimate"
        raise InvalidSetting("profile", str(path), remedy)
    if told.get("version") not in _READABLE:
        remedy = f"must be {VERSION} or older: measure again with this version"
        raise InvalidSetting("profile.version", told.get("version"), remedy)
    for name in _PARTS:
        kind = list if name == "points" else dict
        if not isinstance(told.get(name), kind):
            raise InvalidSetting(f"profile.{name}", told.get(name), f"must be a {kind.__name__}")
    if not all(isinstance(point, dict) for point in told["points"]):
        raise InvalidSetting("profile.points", told["points"], "must be a list of objects")
    return Document(
        subject=told["subject"],
        limits=_limits(told["limits"]),
        points=tuple(map(Point.of, told["points"])),
        base=Profile.from_json(json.dumps({"version": 1} | told["model"])),
    )


def load_profile(path: Path) -> Profile:
    """Return the step model of a profile, in its own format or the mocker's plain one."""
    told = _read_object(path)
    if "format" in told:
        document = read_document(path)
        return document.model if document.points else document.base
    return Profile.read(path)


def subject_of(path: Path) -> Mapping[str, Any]:
    """Return what a profile says that it is of; a plain one says nothing."""
    told = _read_object(path)
    return read_document(path).subject if "format" in told else {}


def _limits(told: dict[str, Any]) -> Limits:
    known = [each.name for each in fields(Limits)]
    for name, value in told.items():
        if name not in known:
            raise InvalidSetting(f"limits.{name}", value, f"is unknown: {', '.join(known)}")
    return Limits(**told)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting("profile", str(path), f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidSetting("profile", str(path), f"is not JSON: {error}") from None
    if not isinstance(told, dict):
        raise InvalidSetting("profile", str(path), "must hold a JSON object")
    return told
