"""Who can take a request at all. Each filter is a rule with a reason, which the error tells."""

from collections.abc import Sequence
from dataclasses import dataclass

from stafette.router.load import LoadView
from stafette.router.request import Candidate, Request, WorkerSpec


class Busy(str):
    """A reason that passes with time: the target would take the request, later."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterConfig:
    max_queued_tokens: int = 0  # above it a target is overloaded; 0: no bound
    max_used_share: float = 0.0  # of its blocks; 0: no bound


def reason_against(
    request: Request, spec: WorkerSpec, load: LoadView, config: FilterConfig
) -> str | None:
    """Return why the target cannot take the request, or None when it can."""
    if request.pinned is not None and request.pinned != spec.target:
        return f"the request is pinned to {request.pinned}"
    reason = mismatch(request, spec)
    # Asked of every target for every request: most have no bounds to be looked at.
    if reason is None and (spec.max_requests or config.max_queued_tokens or config.max_used_share):
        return _overload(spec, load, config)
    return reason


def mismatch(request: Request, spec: WorkerSpec) -> str | None:
    """Return why a target that is like this can never take the request."""
    if spec.cache.model != request.model:
        return f"serves model {spec.cache.model!r}"
    if request.lora and spec.loras is not None and request.lora not in spec.loras:
        return f"has no LoRA adapter {request.lora!r}"
    if spec.taints and not spec.taints <= request.tolerations:
        return f"is tainted: {', '.join(sorted(spec.taints - request.tolerations))}"
    return None


def _overload(spec: WorkerSpec, load: LoadView, config: FilterConfig) -> Busy | None:
    if spec.max_requests and load.requests >= spec.max_requests:
        return Busy(f"is full: {load.requests} requests")
    if config.max_queued_tokens and load.queued_tokens > config.max_queued_tokens:
        return Busy(f"is overloaded: {load.queued_tokens} tokens wait")
    share = load.used_blocks / spec.total_blocks if spec.total_blocks else 0.0
    if config.max_used_share and share > config.max_used_share:
        return Busy(f"is overloaded: {share:.0%} of its blocks are in use")
    return None


def by_role(group: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Return who computes prompts for others, and who decodes.

    A role is a wish: where nobody decodes, those that compute prompts do all of it.
    """
    prefillers = [one for one in group if one.spec.role == "prefill"]
    if not prefillers:
        return [], list(group)
    decoders = [one for one in group if one.spec.role != "prefill"]
    return (prefillers, decoders) if decoders else ([], prefillers)
