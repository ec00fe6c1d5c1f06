"""How commands ask a running server: plain HTTP, with errors that say what to do."""

import argparse
import http.client
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.trust import Trust, add_trust_arguments, advice, trust_of
from stafette.workers.errors import EngineError

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "STAFETTE_API_KEY"
_CONNECT_S = 10.0  # TLS's handshake included
_TIMEOUT_S = 300.0  # a long prompt may take that long until its first token


class AskingFailed(EngineError):
    """A server that is not there, or says no."""


def add_server_arguments(
    parser: argparse.ArgumentParser, whose: str = "of a frontend", default: str | None = DEFAULT_URL
) -> None:
    shown = whose if default is None else f"{whose} (default: %(default)s)"
    parser.add_argument("--url", default=default, help=shown)
    parser.add_argument("--key", help=f"API key (default: {KEY_VARIABLE})")
    add_trust_arguments(parser)


class Asker:
    """Asks one server, a connection for each question."""

    def __init__(self, url: str, key: str | None, trust: Trust | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidSetting("--url", url, f"must be like {DEFAULT_URL}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._parts = parts
        key = key or os.environ.get(KEY_VARIABLE)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._tls = (trust or Trust()).context() if parts.scheme == "https" else None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Asker":
        return cls(arguments.url, arguments.key, trust_of(arguments))

    def get(self, path: str) -> Any:
        with self._answer("GET", path, None) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: object) -> Any:
        with self._answer("POST", path, body) as answer:
            return json.loads(answer.read())

    def delete(self, path: str) -> Any:
        with self._answer("DELETE", path, None) as answer:
            return json.loads(answer.read())

    def events(self, path: str, body: object) -> Iterator[Any]:
        """Yield what a stream of server-sent events brings, until its [DONE]."""
        with self._answer("POST", path, body) as answer:
            for line in answer:
                data = line.decode().strip().removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data:
                    yield _checked(json.loads(data))

    @contextmanager
    def _answer(self, method: str, path: str, body: object) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(_TIMEOUT_S)
            data = None if body is None else json.dumps(body)
            headers = self._headers | {"content-type": "application/json"}
            connection.request(method, self._parts.path.removesuffix("/v1") + path, data, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise AskingFailed("url", self.url, _refusal(answer))
            yield answer
        except (OSError, http.client.HTTPException) as error:
            what = advice(error) or "start it, or give --url"
            remedy = f"does not answer ({error or type(error).__name__}): {what}"
            raise AskingFailed("url", self.url, remedy) from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=_CONNECT_S)
        return http.client.HTTPSConnection(host, port, timeout=_CONNECT_S, context=self._tls)


def _refusal(answer: http.client.HTTPResponse) -> str:
    try:
        message = json.loads(answer.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.reason
    hint = f" (set {KEY_VARIABLE})" if answer.status == 401 else ""
    return f"answers {answer.status}: {message}{hint}"


def _checked(event: Any) -> Any:
    if isinstance(event, dict) and "error" in event:
        raise AskingFailed("answer", "broken off", str(event["error"].get("message")))
    return event
