"""A worker whose ranks are on several nodes: one bundle of its placement group for each of them.

The replica is on the first. On each other node an actor starts that node's ranks and stays with
them; they call the replica's process, which talks with them directly. Ray sees no step.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from stafette.platform.config import Config
from stafette.platform.frontend.errors import InvalidSetting

if TYPE_CHECKING:
    from stafette.workers.runner.far_ranks import SpreadRanks

_RANK = "stafette.workers.runner.rank"


class NodeRanks:
    """The ranks of one node, in processes that end with this one."""

    def run(self, host: str, port: int, ranks: Sequence[int], token: bytes) -> str:
        """Start them; return why, when one has ended."""
        started = [_start(host, port, rank, token) for rank in ranks]
        ended = threading.Event()
        for process in started:
            threading.Thread(target=_watch, args=(process, ended), daemon=True).start()
        ended.wait()
        codes = [process.poll() for process in started]
        for process in started:
            process.kill()
        where = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return f"ranks {list(ranks)} on {where} ended with {codes}"


def spread_ranks(config: Config, pool: str, host: str) -> "SpreadRanks | None":
    """Return what starts the ranks of this replica; None when all are on its own node."""
    nodes = config.pools[pool].nodes
    if nodes == 1:
        return None
    from stafette.workers.runner.far_ranks import SpreadRanks  # with torch, as every engine

    group = get_current_placement_group()
    if group is None:
        remedy = "is above 1, but this replica has no placement group: deploy it anew"
        raise InvalidSetting(f"pools.{pool}.nodes", nodes, remedy)
    return SpreadRanks(host, config.token, nodes, _Launcher(config, pool, host, group))


class _Launcher:
    """Keeps the actors for as long as the replica lives."""

    def __init__(self, config: Config, pool: str, host: str, group: PlacementGroup) -> None:
        self._token, self._host, self._group = config.token, host, group
        own = config.pools[pool].on_each_node
        self._options = {
            "num_cpus": own.num_cpus,
            "num_gpus": own.num_gpus,
            "resources": dict(own.resources),
            "runtime_env": {"env_vars": dict(own.env)},
        }
        self._actors: list[Any] = []

    def __call__(self, node: int, port: int, ranks: Sequence[int]) -> Callable[[], str]:
        place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=node)
        kind: Any = ray.remote(NodeRanks)
        actor = kind.options(**self._options, scheduling_strategy=place).remote()
        self._actors.append(actor)
        told = actor.run.remote(self._host, port, list(ranks), self._token)
        return lambda: _outcome(told)


def _outcome(told: Any) -> str:
    ready, _ = ray.wait([told], timeout=0)
    if not ready:
        return ""
    try:
        return str(ray.get(told))
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]


def _start(host: str, port: int, rank: int, token: bytes) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", _RANK, host, str(port), str(rank)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(token + b"\n")
    process.stdin.flush()  # and left open: its end is theirs
    return process


def _watch(process: "subprocess.Popen[bytes]", ended: threading.Event) -> None:
    process.wait()
    ended.set()
