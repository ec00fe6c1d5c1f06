"""The part of a far host in handing KV over: an agent that offers the shares of its ranks."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.kvtransfer.connectors.spread.connector import SpreadConnector
from stafette.kvtransfer.connectors.spread.member import SpreadMember
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.routes import BreakerConfig
from stafette.workers.engine import Engine
from stafette.workers.errors import ConfigError
from stafette.workers.runner.kv_joining import join_kv
from stafette.workers.runner.runner import kv_share
from stafette.workers.runner.torch_runner import TorchRunner

_PLAIN = ("token", "transports", "compatibility", "timeout_s", "call_timeout_s", "verify")


class KvMember:
    """Lives as long as its process."""

    def __init__(self, runner: TorchRunner, settings: Mapping[str, Any], host: str) -> None:
        memories = [*runner.kv_memories(), *(join_kv(told) for told in settings["siblings"])]
        shares = [kv_share(memory) for memory in memories]
        agent = Agent(_agent_config(settings["agent"], settings["name"], host))
        head = agent.add_peer(settings["head"])
        self._member = SpreadMember(agent, P2pConfig(**settings["p2p"]), head, shares)
        self.metadata = agent.metadata()


def open_p2p(engine: Engine, agent: Agent, p2p: P2pConfig) -> P2pConnector:
    """Return the connector of all shares of an engine's blocks, on whatever hosts they lie."""
    metadata = engine.executor.runner.open_members(partial(_settings, agent, p2p))
    if not metadata:
        return P2pConnector(agent, p2p)
    return SpreadConnector(agent, p2p, {agent.add_peer(each): each for each in metadata})


def _settings(agent: Agent, p2p: P2pConfig, node: int, num_nodes: int) -> dict[str, Any]:
    """Return what the first rank of a far node is told, as plain values."""
    config = agent.config
    if config.tls_server is not None or config.transport_options:
        remedy = "must be left out where a worker's ranks are on several nodes"
        raise ConfigError("agent: TLS, transport options", True, remedy)
    plain: dict[str, Any] = {name: getattr(config, name) for name in _PLAIN}
    plain |= {"lease": asdict(config.lease), "breaker": asdict(config.breaker)}
    own = asdict(p2p) | {"rank": node, "num_ranks": num_nodes}
    name = f"{config.name}.{node}"
    return {"name": name, "agent": plain, "p2p": own, "head": agent.metadata()}


def _agent_config(plain: Mapping[str, Any], name: str, host: str) -> AgentConfig:
    own = {**plain, "transports": tuple(plain["transports"])}
    own |= {"lease": LeaseConfig(**plain["lease"]), "breaker": BreakerConfig(**plain["breaker"])}
    return AgentConfig(name=name, host=host, **own)
