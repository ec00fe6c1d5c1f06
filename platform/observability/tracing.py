"""Traces, where they are wanted: without an endpoint nothing of OpenTelemetry is loaded."""

from typing import TYPE_CHECKING

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.observability.config import TracingConfig

if TYPE_CHECKING:
    from stafette.platform.observability.otel import Tracing


def open_tracing(config: TracingConfig, process: str, pool: str) -> "Tracing | None":
    """Return a process' way to the collector; None when there is none."""
    if config.endpoint is None:
        return None
    try:
        from stafette.platform.observability.otel import Tracing
    except ModuleNotFoundError as error:
        remedy = f"needs {error.name}: pip install 'stafette[otel]'"
        raise InvalidSetting("tracing.endpoint", config.endpoint, remedy) from None
    return Tracing(config, process, pool)
