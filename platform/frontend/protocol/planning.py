"""The fields of requests about the planner."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stafette.platform.frontend.protocol.base import Fields, Name, RequestBody

_LONGEST_S = 30 * 86_400.0


class PinRequest(RequestBody):
    pool: Name
    replicas: Annotated[int, Field(ge=0, le=100_000)]
    for_s: Annotated[float, Field(gt=0, le=_LONGEST_S)] = Field(
        description="Seconds after which the planner decides again."
    )


class PinAnswer(Fields):
    pool: str
    replicas: int | None
    for_s: float | None


class Planning(Fields):
    mode: Literal["off", "dry_run", "on"]
    slo: dict[str, float] | None = None
    pools: dict[str, Any]
    plans: list[dict[str, Any]]
    effects: list[dict[str, Any]]
