"""Calls to one etcd cluster: each with a deadline, and at the next endpoint when one fails.

These are gRPC's blocking calls. Its asyncio would wake an event loop of ours at every message of
every other loop in the process, and cost a worker's own gRPC a quarter more processor time
(benchmarks/kvtransfer/directory.py measures it).
"""

import random
import threading
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]

from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.etcd.messages import AUTHENTICATE, Method, pb
from stafette.kvtransfer.directory.etcd.watch_stream import WatchStream
from stafette.kvtransfer.errors import DirectoryUnavailable

MAX_ANSWER_BYTES = 64 << 20
_MIN_ATTEMPT_S = 0.2
_OPTIONS = {
    "grpc.max_receive_message_length": MAX_ANSWER_BYTES,
    "grpc.initial_reconnect_backoff_ms": 50,
    "grpc.min_reconnect_backoff_ms": 2_000,  # how long one attempt to connect may take
    "grpc.max_reconnect_backoff_ms": 1_000,
    # A host that vanished is noticed; an etcd breaks with who pings more often than every 5 s.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
}
_PASSES = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    )
)
_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
_Metadata = tuple[tuple[str, str], ...]
_NOBODY: _Metadata = ()


class Refused(Exception):
    """The etcd has answered with an error that the caller foresaw."""


class EtcdClient:
    """Threads may share it."""

    def __init__(self, config: EtcdConfig) -> None:
        self.place = f"etcd {','.join(urlsplit(each).netloc for each in config.endpoints)}"
        self._config = config
        self._lock = threading.Lock()
        self._channels = [self._connect(endpoint) for endpoint in config.endpoints]
        self._at = 0  # the endpoint that is asked first
        self._token = ""
        self._login = threading.Lock()
        self._closed = threading.Event()

    def call(
        self, method: Method, request: Any, deadline: float, foreseen: Collection[object] = ()
    ) -> Any:
        """Return the answer; Refused for a foreseen status, DirectoryUnavailable for all else."""
        trouble, backoff_s = "there was no time left", self._config.backoff_s
        while (left_s := deadline - time.monotonic()) > 0 and not self._closed.is_set():
            at, credentials = self._at, _NOBODY
            attempt_s = min(left_s, max(left_s / len(self._channels), _MIN_ATTEMPT_S))
            until = time.monotonic() + attempt_s
            try:
                credentials = self._credentials(at, until)
                return self._send(at, method, request, until, credentials)
            except grpc.RpcError as error:
                trouble = self._judge(error, at, foreseen, credentials)
            self._closed.wait(min(backoff_s * random.uniform(0.5, 1), left_s))
            backoff_s = min(2 * backoff_s, self._config.max_backoff_s)
        raise DirectoryUnavailable(self.place, "closed" if self._closed.is_set() else trouble)

    def watch(self, create_request: Any, deadline: float) -> WatchStream:
        """Begin a stream; whether it works tells its first answer."""
        at, credentials = self._at, _NOBODY
        try:
            credentials = self._credentials(at, deadline)
            # With this the server breaks the stream when its cluster has no leader.
            metadata = (*credentials, ("hasleader", "true"))
            return WatchStream(self._channels[at], metadata, create_request, self.place)
        except grpc.RpcError as error:
            trouble = self._judge(error, at, (), credentials)
            raise DirectoryUnavailable(self.place, trouble) from None
        except ValueError:  # of a closed channel
            raise DirectoryUnavailable(self.place, "closed") from None

    def close(self) -> None:
        """End what is under way. Safe to call twice."""
        self._closed.set()
        for channel in self._channels:
            channel.close()

    def _send(
        self, at: int, method: Method, request: Any, deadline: float, metadata: _Metadata = ()
    ) -> Any:
        send = self._channels[at].unary_unary(
            method.path, type(request).SerializeToString, method.answer.FromString
        )
        try:
            return send(request, timeout=deadline - time.monotonic(), metadata=metadata)
        except ValueError:  # of a closed channel
            raise DirectoryUnavailable(self.place, "closed") from None

    def _credentials(self, at: int, deadline: float) -> _Metadata:
        """Log in where that was not done yet; threads do it one after the other."""
        if not self._config.user:
            return ()
        if not self._login.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise DirectoryUnavailable(self.place, "another thread's login takes long")
        try:
            self._token = self._token or self._log_in(at, deadline)
            return (("token", self._token),)
        finally:
            self._login.release()

    def _log_in(self, at: int, deadline: float) -> str:
        user, password = self._config.user, self._config.password
        request = pb.AuthenticateRequest(name=user, password=password)
        try:
            return str(self._send(at, AUTHENTICATE, request, deadline).token)
        except grpc.RpcError as error:
            self._judge(error, at, ())  # what the caller foresees is not meant for a login
            raise

    def _judge(
        self,
        error: Any,
        at: int,
        foreseen: Collection[object],
        credentials: _Metadata = _NOBODY,
    ) -> str:
        """Return why to try again; raise where that would be in vain."""
        code, details = error.code(), error.details()
        if code in foreseen:
            raise Refused(details) from None
        trouble = f"{code.name}: {details}"
        if credentials and (code is _UNAUTHENTICATED or "auth store is old" in details):
            self._forget(credentials)  # they have expired, or the etcd was restarted
        elif code in _PASSES:
            self._go_on_from(at)
        else:
            raise DirectoryUnavailable(self.place, trouble) from None
        return trouble

    def _forget(self, credentials: _Metadata) -> None:
        """Log in again the next time, unless another thread has done so since."""
        if credentials == (("token", self._token),):
            self._token = ""

    def _go_on_from(self, at: int) -> None:
        with self._lock:
            if self._at == at:
                self._at = (at + 1) % len(self._channels)

    def _connect(self, endpoint: str) -> Any:
        target, options = urlsplit(endpoint).netloc, list(_OPTIONS.items())
        config = self._config
        if not config.tls:
            return grpc.insecure_channel(target, options)
        credentials = grpc.ssl_channel_credentials(
            config.ca_cert or None, config.client_key or None, config.client_cert or None
        )
        return grpc.secure_channel(target, credentials, options)
