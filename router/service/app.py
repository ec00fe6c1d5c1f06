"""What the service answers to which path: from a request's bytes to a reply's. It never raises."""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from stafette.router.errors import RouterError
from stafette.router.service import codec, messages
from stafette.router.service.errors import (
    Stopping,
    TooBusy,
    Unauthorized,
    UnknownPath,
    WrongMethod,
    told,
)
from stafette.router.service.http_server import Asked, Reply
from stafette.router.service.metrics import Exposition, Traffic
from stafette.router.service.reading import read_as
from stafette.router.service.service import RouterService

logger = logging.getLogger(__name__)

Answer = dict[str, object]

PREFIX = "/v1/router"
_METRICS = "/metrics"
_READS = ("GET", "HEAD")


class _Post(NamedTuple):
    kind: type[Any]
    handle: Callable[[Any], Answer | Awaitable[Answer]]


class RouterApp:
    """`token` None: everybody may ask."""

    def __init__(self, service: RouterService, token: str | None) -> None:
        self.service = service
        self.traffic = Traffic()
        self.is_open = True
        self._token = None if token is None else f"Bearer {token}".encode()
        self._exposition = Exposition(service, self.traffic)
        self._posts = _posts(service)
        self._gets: Mapping[str, Callable[[str], Answer]] = {
            f"{PREFIX}/explain": service.explain,
            f"{PREFIX}/workers": service.describe,
            "/health": self._health,
            "/live": self._health,
            "/ready": self._ready,
        }
        self._paths = frozenset([*self._posts, *self._gets, _METRICS])

    def drain(self) -> None:
        """Take no new requests; those that wait are told to leave."""
        self.is_open = False
        self.service.requests.room.close()

    def look(self, asked: Asked) -> Exception | None:
        """Return why a request is refused, by its head alone: its body is not kept then."""
        try:
            self._check(asked)
        except RouterError as error:
            return error
        return None

    def answer(self, asked: Asked) -> Reply | Awaitable[Reply]:
        began = time.perf_counter()
        try:
            if asked.refused is not None:
                raise asked.refused
            if asked.path == _METRICS:
                return self._metrics(asked)
            if asked.method in _READS:
                return self._reply(asked, self._gets[asked.path](asked.query))
            answer = self._post(asked)
        except Exception as error:
            return self._refusal(asked, error)
        if not isinstance(answer, dict):
            return self._later(asked, answer, began)
        self._time(asked, began)
        return self._reply(asked, answer)

    async def _later(self, asked: Asked, answer: Awaitable[Answer], began: float) -> Reply:
        self.traffic.in_flight += 1
        try:
            return self._reply(asked, await answer)
        except Exception as error:
            return self._refusal(asked, error)
        finally:
            self.traffic.in_flight -= 1
            self._time(asked, began)

    def _check(self, asked: Asked) -> None:
        method, path = asked.method, asked.path
        is_open = path.startswith(f"{PREFIX}/") or path not in self._paths
        if is_open and self._token is not None:
            self._check_token(asked)
        if path in self._posts:
            if method != "POST":
                raise WrongMethod("method", method, "use POST")
            self._check_room(path)
            codec.is_msgpack(asked.header(b"content-type"))
        elif path not in self._paths:
            known = ", ".join(sorted(self._paths))
            raise UnknownPath("path", path, f"does not exist; there are {known}")
        elif method not in _READS:
            raise WrongMethod("method", method, "use GET")

    def _check_token(self, asked: Asked) -> None:
        assert self._token is not None
        sent = asked.headers.get(b"authorization", b"")
        scheme, _, token = sent.partition(b" ")
        if not hmac.compare_digest(scheme.title() + b" " + token.strip(), self._token):
            remedy = "must be `Bearer TOKEN`, with this service's token"
            raise Unauthorized("authorization", "(secret)" if sent else None, remedy)

    def _check_room(self, path: str) -> None:
        if not self.is_open:
            raise Stopping("path", path, "this router is about to end: ask another one")
        most = self.service.config.service.max_in_flight
        if self.traffic.in_flight >= most:
            raise TooBusy("path", path, f"{most} requests are under way, the most: come again")

    def _post(self, asked: Asked) -> Answer | Awaitable[Answer]:
        kind, handle = self._posts[asked.path]
        as_msgpack = codec.is_msgpack(asked.header(b"content-type"))
        return handle(read_as(kind, codec.decode(asked.body, as_msgpack)))

    def _metrics(self, asked: Asked) -> Reply:
        body, content_type = self._exposition.render(asked.header(b"accept"))
        self._count(asked, "ok")
        return Reply(200, content_type, body)

    def _reply(self, asked: Asked, answer: Answer) -> Reply:
        self._count(asked, "ok")
        return self._encode(asked, 200, answer)

    def _refusal(self, asked: Asked, error: Exception) -> Reply:
        """Tell what is wrong: it costs no other request."""
        if not isinstance(error, RouterError | ValueError):
            logger.error("%s %s failed", asked.method, asked.path, exc_info=error)
        answer = told(error)
        self._count(asked, answer.code)
        reply = self._encode(asked, answer.status, answer.document)
        return reply._replace(headers=answer.headers, closes=answer.closes)

    def _encode(self, asked: Asked, status: int, answer: Answer) -> Reply:
        came = asked.header(b"content-type") in codec.MSGPACKS
        as_msgpack = codec.wants_msgpack(asked.header(b"accept"), came)
        body, content_type = codec.encode(answer, as_msgpack)
        return Reply(status, content_type, body)

    def _count(self, asked: Asked, code: str) -> None:
        path = asked.path if asked.path in self._paths else "other"
        self.traffic.answers[path, code] += 1

    def _time(self, asked: Asked, began: float) -> None:
        if self._posts[asked.path].kind is messages.Select:
            self.traffic.selected(time.perf_counter() - began)

    def _health(self, query: str) -> Answer:
        return {"status": "ok"}

    def _ready(self, query: str) -> Answer:
        """503 while no requests should be sent here."""
        members = self.service.router.fleet.members.values()
        if not self.is_open:
            raise Stopping("path", "/ready", "this router is about to end: ask another one")
        if all(member.away for member in members):
            raise Stopping("workers", len(members), "none can take requests now: register one")
        return {"status": "ok"}


def _posts(service: RouterService) -> Mapping[str, _Post]:
    workers, requests = service.workers, service.requests
    table: Mapping[str, tuple[type[Any], Callable[[Any], Answer | Awaitable[Answer]]]] = {
        "register": (messages.Register, workers.register),
        "unregister": (messages.Unregister, workers.unregister),
        "state": (messages.SetState, workers.set_state),
        "load": (messages.ReportLoad, workers.report_load),
        "steps": (messages.ReportSteps, workers.report_steps),
        "events": (messages.PushEvents, workers.push_events),
        "select": (messages.Select, requests.select),
        "reserve": (messages.Reserve, requests.reserve),
        "first_token": (messages.FirstToken, requests.first_token),
        "progress": (messages.Progress, requests.progress),
        "free": (messages.Free, requests.free),
        "heartbeat": (messages.Heartbeat, requests.heartbeat),
    }
    return {f"{PREFIX}/{name}": _Post(*entry) for name, entry in table.items()}
