"""The connector of an engine that is alone: it finds nothing, and passes nothing on."""

from collections.abc import Sequence

from stafette.kvtransfer.connectors.connector import (
    Finish,
    KvConnector,
    KvRequest,
    LoadOrder,
    Save,
)
from stafette.kvtransfer.connectors.loading import Load, failed_load


class NullConnector(KvConnector):
    name = "null"

    @classmethod
    def of(cls, agent: object, config: None) -> "NullConnector":
        return cls()

    def matched_tokens(self, request: KvRequest, num_held: int) -> int:
        return 0

    def begin(self, request: KvRequest, first: int, blocks: Sequence[int]) -> LoadOrder:
        return LoadOrder.of(request, first, blocks)

    def finish(self, request: KvRequest, reason: str = "") -> Finish:
        return Finish()

    def start_load(self, order: LoadOrder) -> Load:
        return failed_load(order, "the null connector has no blocks")

    def save_layer(self, layer: int, save: Save) -> None:
        if self.completes(layer):
            save.release()

    def close(self) -> None:
        pass
