"""Chooses how a process learns which workers there are."""

from stafette.platform.config import DiscoveryConfig
from stafette.platform.serving.directory_discovery import DirectoryDiscovery, open_workers_directory
from stafette.platform.serving.membership import Discovery
from stafette.platform.serving.serve_discovery import ServeDiscovery


def discovery_of(config: DiscoveryConfig, deployments: list[str]) -> Discovery:
    """`deployments` are the workers', where Serve is asked."""
    if config.backend == "etcd":
        return DirectoryDiscovery(open_workers_directory(config))
    return ServeDiscovery(deployments)
