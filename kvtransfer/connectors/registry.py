"""The connectors by name. One that lacks its driver hurts only whoever asks for it."""

from importlib import import_module
from typing import TYPE_CHECKING

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.errors import InvalidValue

if TYPE_CHECKING:
    from stafette.kvtransfer.connectors.connector import KvConnector

_HOMES = {
    "null": ("null", "NullConnector"),
    "p2p": ("p2p.connector", "P2pConnector"),
    "tiered": ("tiered", "TieredConnector"),
    "multi": ("multi", "MultiConnector"),
}
NAMES = tuple(_HOMES)


def make(name: str, agent: Agent | None = None, config: object = None) -> "KvConnector":
    """Return the connector of that name; `config` is its own, None for its defaults.

    The agent is the worker's, which whoever made it closes after the connector.
    """
    if name not in _HOMES:
        raise InvalidValue("connector", name, f"must be one of {', '.join(NAMES)}")
    module, kind = _HOMES[name]
    made: KvConnector = getattr(import_module(f"{__package__}.{module}"), kind).of(agent, config)
    return made
