"""Ranks on other hosts: they call this process, prove that they are of its cluster, and obey.

    rank -> {rank, nonce}
    here -> {nonce, proof}
    rank -> {proof}

A proof is an HMAC-SHA256 over the prover's side, both nonces and the rank, under the cluster's
token, which itself never travels here.
"""

import contextlib
import hmac
import logging
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stafette.workers.errors import ConfigError, EngineDead
from stafette.workers.runner.link import Link
from stafette.workers.runner.rank_process import Rank, RankProcess

_log = logging.getLogger(__name__)
_NONCE_BYTES = 32
_MAX_BYTES = 1_024  # of what a stranger says
_PROOF_S = 5.0
_LOOK_S = 0.5
_GRACE_S = 1.0
_QUIET_S, _PROBE_S, _PROBES = 10, 5, 3  # a host that is gone without a word is missed after 25 s
_HEAD, _RANK = b"head", b"rank"

# Starts some ranks on a node, which call the port; what it returns tells why none will, or "".
Launch = Callable[[int, int, Sequence[int]], Callable[[], str]]


class FarRank(Rank):
    """A rank that has called from another host."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        super().__init__(rank, Link(connection))
        self._connection = connection
        self._host = connection.getpeername()[0]

    def has_ended(self, within_s: float = 0.0) -> bool:
        """A closed connection is all that is known of its end."""
        until = time.monotonic() + within_s
        while True:
            try:
                readable, _, _ = select.select([self._connection], [], [], within_s)
                if readable:
                    return not self._connection.recv(1, socket.MSG_PEEK)
            except (OSError, ValueError):  # ValueError: closed on our side
                return True
            if (within_s := until - time.monotonic()) <= 0:
                return False

    def death(self, otherwise: str) -> EngineDead:
        who = f"tensor parallel rank {self.rank} on {self._host}"
        return EngineDead(who, otherwise, "start the engine again")

    def stop(self) -> None:
        with contextlib.suppress(EOFError):
            self._link.send({"op": "close"}, _GRACE_S)
        self._link.close()


class SpreadRanks:
    """The first node is this one. The others' ranks are launched, and then call."""

    def __init__(self, host: str, token: bytes, num_nodes: int, launch: Launch) -> None:
        self.host = host
        self.num_nodes = num_nodes
        self._token = token
        self._launch = launch

    def start(self, size: int, timeout_s: float) -> list[Rank]:
        if size % self.num_nodes:
            remedy = f"must be a multiple of {self.num_nodes}, the nodes that share it"
            raise ConfigError("tensor_parallel_size", size, remedy)
        share = size // self.num_nodes
        ranks: list[Rank] = []
        try:
            ranks += [RankProcess(rank) for rank in range(1, share)]
            with socket.create_server((self.host, 0)) as listener:
                port = listener.getsockname()[1]
                failures = [
                    self._launch(node, port, range(node * share, (node + 1) * share))
                    for node in range(1, self.num_nodes)
                ]
                for far in self._gather(listener, range(share, size), failures, timeout_s):
                    ranks.append(far)
        except BaseException:
            for rank in ranks:
                rank.stop()
            raise
        return sorted(ranks, key=lambda each: each.rank)

    def _gather(
        self,
        listener: socket.socket,
        wanted: Sequence[int],
        failures: Sequence[Callable[[], str]],
        timeout_s: float,
    ) -> Iterator[FarRank]:
        """Yield those that call until all have."""
        until = time.monotonic() + timeout_s
        missing = set(wanted)
        listener.settimeout(_LOOK_S)
        while missing:
            if time.monotonic() > until:
                how = f"{len(missing)} of {len(wanted)} have not called in {timeout_s:g} s"
                raise EngineDead("tensor parallel ranks", how, "see their nodes' logs")
            try:
                connection, address = listener.accept()
            except TimeoutError:
                _raise_if_failed(failures)
                continue
            rank = _admit(connection, self._token)
            if rank is None or rank.rank not in missing:
                _log.warning("a caller from %s is not one of our ranks", address[0])
                connection.close()
                continue
            missing.discard(rank.rank)
            yield rank


def call(host: str, port: int, rank: int, token: bytes) -> tuple[Link, str]:
    """Be a rank: return the link to its parent, and this host's address on the way there."""
    connection = socket.create_connection((host, port), _PROOF_S)
    _keep_alive(connection)
    link, nonce = Link(connection), secrets.token_bytes(_NONCE_BYTES)
    link.send({"rank": rank, "nonce": nonce}, _PROOF_S)
    answer = link.receive(_PROOF_S, _MAX_BYTES)
    said = (nonce, _nonce(answer), rank)
    if not hmac.compare_digest(answer["proof"], _prove(token, _HEAD, *said)):
        raise EOFError("whoever answers there is not of this cluster")
    link.send({"proof": _prove(token, _RANK, *said)}, _PROOF_S)
    return link, str(connection.getsockname()[0])


def _admit(connection: socket.socket, token: bytes) -> FarRank | None:
    """Return the rank that has called; None when it is a stranger."""
    _keep_alive(connection)
    link, nonce = Link(connection), secrets.token_bytes(_NONCE_BYTES)
    try:
        hello = link.receive(_PROOF_S, _MAX_BYTES)
        rank = hello["rank"]
        if type(rank) is not int:
            raise TypeError("a rank is a number")
        said = (_nonce(hello), nonce, rank)
        link.send({"nonce": nonce, "proof": _prove(token, _HEAD, *said)}, _PROOF_S)
        proof = link.receive(_PROOF_S, _MAX_BYTES)["proof"]
        if hmac.compare_digest(proof, _prove(token, _RANK, *said)):
            return FarRank(rank, connection)
    except (EOFError, TimeoutError, KeyError, TypeError, ValueError, OverflowError) as error:
        _log.info("a caller did not prove itself: %s", error)
    return None


def _nonce(message: Mapping[str, Any]) -> bytes:
    nonce = message["nonce"]
    if not isinstance(nonce, bytes) or len(nonce) != _NONCE_BYTES:
        raise ValueError(f"a nonce has {_NONCE_BYTES} bytes")
    return nonce


def _prove(token: bytes, side: bytes, one: bytes, other: bytes, rank: int) -> bytes:
    return hmac.digest(token, side + one + other + rank.to_bytes(4, "big"), "sha256")


def _keep_alive(connection: socket.socket) -> None:
    options = (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    )
    probes = (
        (socket.TCP_KEEPIDLE, _QUIET_S),
        (socket.TCP_KEEPINTVL, _PROBE_S),
        (socket.TCP_KEEPCNT, _PROBES),
    )
    for level, option, value in (*options, *((socket.IPPROTO_TCP, *probe) for probe in probes)):
        connection.setsockopt(level, option, value)


def _raise_if_failed(failures: Sequence[Callable[[], str]]) -> None:
    for failure in failures:
        if reason := failure():
            raise EngineDead("tensor parallel ranks", reason, "see their nodes' logs")
