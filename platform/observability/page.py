"""What Prometheus reads: the metrics of one process, or of all those of a node."""

from typing import Protocol

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from stafette.platform.observability.process import ProcessMetrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Page(Protocol):
    @property
    def process(self) -> ProcessMetrics:
        """What this process itself adds to it."""
        ...

    async def text(self) -> bytes:
        """Return it in Prometheus' text format."""
        ...


class OwnPage(Page):
    """One process alone."""

    def __init__(self, process: ProcessMetrics) -> None:
        self._process = process

    @property
    def process(self) -> ProcessMetrics:
        return self._process

    async def text(self) -> bytes:
        return self._process.render()
