"""What a benchmark is going to do: the same plan again goes on where it stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stafette.platform.bench.asking import Api
from stafette.platform.bench.endpoints import Endpoint, checked_name
from stafette.platform.bench.load import Lengths, Level, Shape
from stafette.platform.frontend.errors import InvalidSetting

Backend = Literal["aiperf", "builtin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`endpoints` may grow from run to run; all else stays as it is."""

    name: str
    endpoints: tuple[Endpoint, ...]
    shape: Shape
    seed: int
    model: str | None = None  # None: the only one that each endpoint serves
    lengths: Lengths = Lengths()
    requests: int | None = None  # of each level; None: by the level
    warmup: int = 2  # requests before the levels, which are not measured
    api: Api = "chat"
    stream: bool = True
    ignore_eos: bool = True
    backend: Backend = "builtin"
    server: Mapping[str, Any] = field(default_factory=dict)  # how it is started, where it is

    def __post_init__(self) -> None:
        checked_name("--name", self.name)
        if self.requests is not None and self.requests < 1:
            raise InvalidSetting("--requests", self.requests, "must be at least 1, or left out")
        if self.warmup < 0:
            raise InvalidSetting("--warmup", self.warmup, "must be at least 0")
        if self.backend == "aiperf" and any(level.aiperf is None for level in self.levels()):
            kind = self.shape.to_dict()["kind"]
            remedy = f"is not used for the shape {kind} here: take builtin, or auto"
            raise InvalidSetting("--backend", "aiperf", remedy)

    def levels(self) -> Sequence[Level]:
        return self.shape.levels(self.lengths, self.requests, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return what must not change."""
        plain = ("name", "seed", "model", "requests", "warmup", "api", "stream", "ignore_eos")
        told = {name: getattr(self, name) for name in plain}
        told |= {"backend": self.backend, "lengths": asdict(self.lengths)}
        told |= {"server": dict(self.server)} if self.server else {}
        return told | {"shape": self.shape.to_dict()}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], at: str = "") -> list[str]:
    """Return what differs between two plans, in words."""
    found = []
    for name in sorted({*ours, *theirs}):
        mine, other = _plain(ours.get(name)), _plain(theirs.get(name))
        if mine == other:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            found += differences(mine, other, f"{at}{name}.")
        else:
            found.append(f"{at}{name} was {other}, and is {mine}")
    return found


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
