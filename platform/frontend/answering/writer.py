"""What the serving loop asks of whoever writes an answer."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stafette.platform.frontend.errors import ApiError
from stafette.workers.request import OutputDelta

Placement = Mapping[str, Any] | None


class StreamWriter(Protocol):
    """Returns text to send; each step's is sent in one write."""

    def begin(self, placement: Placement) -> str: ...

    def write(self, deltas: Sequence[OutputDelta]) -> str: ...

    def end(self) -> str:
        """Close a stream whose answers have all ended."""
        ...

    def cut(self, reason: str) -> str:
        """End the answers that have not, with finish_reason `abort`; then close the stream."""
        ...

    def fail(self, error: ApiError) -> str:
        """Close a stream that cannot go on."""
        ...


class WholeWriter(Protocol):
    """Collects an answer that is sent in one piece."""

    def write(self, deltas: Sequence[OutputDelta]) -> object: ...

    def whole(self, placement: Placement) -> dict[str, Any]: ...
