"""What is made sure of before an endpoint is measured: it answers, and has the model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stafette.platform.bench.asking import refusal
from stafette.platform.bench.client import Client, Reply
from stafette.platform.bench.errors import Refused, Unreachable
from stafette.platform.bench.load import Lengths
from stafette.platform.trust import advice


@dataclass(frozen=True, slots=True)
class Served:
    """What a server tells of itself."""

    model: str
    max_model_len: int | None
    about: Mapping[str, Any]


async def check(client: Client, model: str | None) -> Served:
    url = client.endpoint.url
    try:
        reply = await client.get("/v1/models")
    except (OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        remedy = f"does not answer ({reason}): {advice(error) or 'start it, or correct the URL'}"
        raise Unreachable(f"--endpoint {client.endpoint.label}", url, remedy) from None
    if reply.head.status != 200:
        remedy = f"answers {reply.head.status} when asked for its models: {refusal(reply.body)}"
        hint = " (set STAFETTE_API_KEY, or give --key)" if reply.head.status == 401 else ""
        raise Refused(f"--endpoint {client.endpoint.label}", url, remedy + hint)
    served = _models(reply, client)
    chosen = model if model is not None else _only(served)
    if chosen not in served:
        remedy = f"is not served at {url}; there is: {', '.join(served) or 'none'}"
        raise Refused("--model", chosen, remedy)
    longest = served[chosen].get("max_model_len")
    about = {"models": served, "version": await _version(client)}
    return Served(chosen, longest if isinstance(longest, int) else None, about)


def check_lengths(served: Served, lengths: Lengths, label: str) -> None:
    """Refuse prompts that cannot be answered to their end; a chat's template comes on top."""
    longest, wanted = served.max_model_len, lengths.isl + lengths.osl
    if longest is not None and wanted > longest:
        remedy = f"and --osl = {lengths.osl} are {wanted}, more than max_model_len = {longest}"
        raise Refused("--isl", lengths.isl, f"{remedy} of {label}: ask for less")


def _models(reply: Reply, client: Client) -> dict[str, Mapping[str, Any]]:
    try:
        return {str(each["id"]): each for each in reply.json()["data"]}
    except (KeyError, TypeError, ValueError):
        remedy = "does not list its models as OpenAI's API does: is it a language model's server?"
        where = f"--endpoint {client.endpoint.label}"
        raise Refused(where, client.endpoint.url, remedy) from None


def _only(served: Mapping[str, Any]) -> str:
    if len(served) != 1:
        raise Refused("--model", None, f"must be named: there is {', '.join(served) or 'none'}")
    return next(iter(served))


async def _version(client: Client) -> Any:
    """Return what GET /version says, or None."""
    try:
        reply = await client.get("/version")
        return reply.json() if reply.head.status == 200 else None
    except (OSError, TimeoutError, json.JSONDecodeError):
        return None
