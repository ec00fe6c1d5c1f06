"""From a description to a workload."""

from pathlib import Path

from stafette.platform.twin.arrivals import Workload
from stafette.platform.twin.workloads.config import WorkloadConfig
from stafette.platform.twin.workloads.conversations import Agents, Sessions
from stafette.platform.twin.workloads.mooncake import Trace
from stafette.platform.twin.workloads.open_loop import OpenLoop


def make_workload(config: WorkloadConfig, beside: Path = Path()) -> Workload:
    """Files are looked for in `beside`."""
    if config.trace is not None:
        return Trace(config.trace, beside / config.trace.file)
    if config.sessions is not None:
        return Sessions(config)
    if config.agents is not None:
        return Agents(config)
    return OpenLoop(config)
