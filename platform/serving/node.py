"""Where a process of a fleet can be reached."""

import ray

from stafette.platform.config import Config


def node_host(config: Config) -> str:
    """Return the address on which this process can be reached from the other nodes."""
    if config.cluster.host != "auto":
        return config.cluster.host
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
