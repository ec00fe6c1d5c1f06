"""The frontends as the planner has them: streams, on which a request that waits is told at once."""

from collections.abc import Callable

from stafette.platform.serving.links import Links
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.config import ServiceConfig


class FrontendLinks(Links):
    def __init__(self, service: ServiceConfig) -> None:
        super().__init__("planner", service)
        self.on_waiting: Callable[[], None] = lambda: None  # a frontend has nobody for a request

    def _enter(self, name: str, client: WorkerClient) -> None:
        def look() -> None:
            if client.load.get("waiting"):
                self.on_waiting()

        client.on_load = look
