"""Reads server-sent events out of the pieces in which they arrive."""


class EventReader:
    """Lines may end in LF, CR or both; only `data` matters here."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that this piece completes."""
        text = self._rest + piece
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # the LF that belongs to it may come next
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = text.split(b"\n\n")
        self._rest = rest + held
        return [data for event in whole if (data := _data(event)) is not None]


def _data(event: bytes) -> bytes | None:
    """Return an event's data, or None of one that has none: a comment keeps a connection open."""
    if event.startswith(b"data: ") and b"\n" not in event:  # nearly all are
        return event[6:]
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines) if lines else None
