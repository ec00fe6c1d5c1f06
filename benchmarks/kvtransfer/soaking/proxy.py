"""A TCP proxy whose connections can be cut: the network that some owners are reached through."""

import random
import socket
import threading
from contextlib import suppress

_HOST = "127.0.0.1"
_PIECE_BYTES = 1 << 16


class Proxy:
    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self.num_cut = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((_HOST, 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, rng: random.Random) -> None:
        """Cut some of the connections that are open now."""
        with self._lock:
            pairs = [pair for pair in self._pairs if rng.random() < 0.5]
        for pair in pairs:
            self.num_cut += 1
            self._end(pair)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                assert self.target is not None
                far = socket.create_connection(self.target, 5.0)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._join(near, far)

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        pair = (near, far)
        with self._lock:
            self._pairs.add(pair)
        for one, other in (pair, pair[::-1]):
            threading.Thread(target=self._pump, args=(one, other, pair), daemon=True).start()

    def _pump(
        self, one: socket.socket, other: socket.socket, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        with suppress(OSError):
            while piece := one.recv(_PIECE_BYTES):
                other.sendall(piece)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            if pair not in self._pairs:
                return
            self._pairs.discard(pair)
        for each in pair:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in pair:
            each.close()
