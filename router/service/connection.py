"""One keep-alive connection of the client: a request, its answer, the next one."""

import asyncio
import re
from typing import NamedTuple, cast

_HEAD_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = 64 << 10
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,12})", re.IGNORECASE)
_TYPE = re.compile(rb"\r\ncontent-type: *([^\r;]*)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Reply(NamedTuple):
    status: int
    content_type: str
    body: bytes


class Connection(asyncio.Protocol):
    """ConnectionResetError when it breaks; `unanswered` tells whether nothing at all came back."""

    def __init__(self, max_bytes: int) -> None:
        self.alive = True
        self.unanswered = True
        self._max_bytes = max_bytes
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._buffer = bytearray()
        self._body_at = 0  # 0: the head is not whole yet
        self._end = 0
        self._head = b""

    async def ask(self, request: bytes) -> Reply:
        assert self._transport is not None
        assert self._reply is None, "one request at a time"
        if not self.alive:
            raise ConnectionResetError("the service has closed the connection")
        self.unanswered = True
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._reply
        except BaseException:
            self.close()  # its answer may still come, and would be taken for the next one's
            raise
        finally:
            self._reply = None

    def close(self) -> None:
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        self._fail(f"the connection broke: {error or 'the service closed it'}")

    def data_received(self, data: bytes) -> None:
        self.unanswered = False
        self._buffer += data
        if not self._body_at:
            at = self._buffer.find(_HEAD_END)
            if at >= 0:
                self._begin(bytes(self._buffer[:at]), at + len(_HEAD_END))
            elif len(self._buffer) > _MAX_HEAD_BYTES:
                self._give_up("the answer's head has no end")
        if self._body_at and len(self._buffer) >= self._end:
            self._finish()

    def _begin(self, head: bytes, body_at: int) -> None:
        length = _LENGTH.search(head)
        if not _STATUS.match(head) or length is None:
            self._give_up("what answers is not this service")
        elif int(length[1]) > self._max_bytes:
            self._give_up(f"the answer is larger than {self._max_bytes} bytes")
        else:
            self._head, self._body_at, self._end = head, body_at, body_at + int(length[1])

    def _finish(self) -> None:
        status, kind = _STATUS.match(self._head), _TYPE.search(self._head)
        assert status is not None
        body = bytes(self._buffer[self._body_at : self._end])
        del self._buffer[: self._end]
        self._body_at = 0
        if _CLOSE.search(self._head) or self._buffer:  # nothing was asked that this could answer
            self.alive = False
        if self._reply is not None and not self._reply.done():
            content_type = kind[1].decode("latin-1").strip() if kind else ""
            self._reply.set_result(Reply(int(status[1]), content_type, body))

    def _give_up(self, reason: str) -> None:
        self._fail(reason)
        self.close()

    def _fail(self, reason: str) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError(reason))
