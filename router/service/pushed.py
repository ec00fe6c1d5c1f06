"""Events that workers send by HTTP: in order, of one life, on a clock that does not go back."""

from dataclasses import dataclass

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.events import EventBatch, decode
from stafette.kvtransfer.strict import pack
from stafette.router.service.errors import ClockBackwards, EventGap, StaleEpoch
from stafette.router.service.messages import PushEvents


@dataclass(slots=True)
class Life:
    """What a worker has told so far."""

    epoch: int = 0
    seq: int = 0
    timestamp: float = float("-inf")
    load_at: float = float("-inf")

    def take(self, pushed: PushEvents) -> EventBatch | None:
        """Return the batch when it is the next one, and None when it came before."""
        batch = _batch(pushed)
        self.check_epoch(pushed.epoch)
        begins = pushed.epoch > self.epoch or not self.seq
        if not begins and pushed.timestamp < self.timestamp:
            remedy = f"the batch before was of {self.timestamp}: send times that do not go back"
            raise ClockBackwards("timestamp", pushed.timestamp, remedy)
        expected = 1 if begins else self.seq + 1
        if not begins and pushed.seq < expected:
            return None
        if pushed.seq > expected and not pushed.snapshot:
            remedy = f"batch {expected} is the next: send what is missing, or a snapshot"
            raise EventGap("seq", pushed.seq, remedy)
        self.epoch, self.seq, self.timestamp = pushed.epoch, pushed.seq, pushed.timestamp
        return batch

    def check_epoch(self, epoch: int | None) -> None:
        if epoch is not None and epoch < self.epoch:
            remedy = f"epoch {self.epoch} of this worker is known: an older life must be silent"
            raise StaleEpoch("epoch", epoch, remedy)

    def check_load(self, at: float | None) -> None:
        if at is None:
            return
        if at < self.load_at:
            remedy = f"the report before was of {self.load_at}: send times that do not go back"
            raise ClockBackwards("at", at, remedy)
        self.load_at = at


def _batch(pushed: PushEvents) -> EventBatch:
    """Read events in their wire form, whatever the body was written in."""
    head = [pushed.worker, pushed.epoch, pushed.seq, pushed.timestamp, pushed.snapshot]
    if not isinstance(pushed.events, list):
        raise MalformedMessage("events", "a list of [stored | removed | cleared, ...]")
    try:
        return decode(pack([*head, [_event(one) for one in pushed.events]]))
    except (OverflowError, TypeError, ValueError) as error:
        if isinstance(error, MalformedMessage):
            raise
        raise MalformedMessage("events", f"values of the wire form ({error})") from None


def _event(value: object) -> object:
    """JSON has no bytes: there a parent and the run of hashes are written in hex."""
    match value:
        case ["stored", parent, size, hashes, *rest]:
            return ["stored", _octets(parent), size, _octets(hashes), *rest]
        case ["removed", size, hashes, *rest]:
            return ["removed", size, _octets(hashes), *rest]
    return value


def _octets(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise MalformedMessage("hash", "bytes, in JSON as hex digits") from None
