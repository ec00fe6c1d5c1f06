"""The owner's side of visits: each in the thread of its connection, and an end for all of them."""

import logging
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from stafette.kvtransfer.control.remote_errors import pack_error
from stafette.kvtransfer.errors import MalformedMessage, TransferError
from stafette.kvtransfer.transport import Claim, Gate, PeerInfo
from stafette.kvtransfer.transports.visits.talk import DONE, GO, NO, Question, Talk, TalkEnded

_log = logging.getLogger(__name__)


class Host(ABC):
    """What a transport does for one visitor."""

    @abstractmethod
    def serve(self) -> None:
        """Do what the visitor asks until it leaves: TalkEnded, or another OSError."""

    @abstractmethod
    def stop(self) -> None:
        """Wake `serve`, from any thread; the talk is shut down already."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; `serve` has ended."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is here, and what stands between it and the blocks."""

    peer: PeerInfo
    talk: Talk
    gate: Gate

    def answer(self, question: Question, greeting: int, move: Callable[[Claim], int]) -> None:
        """Hold the blocks while `move` lets them go; then say whether they stayed as they were."""
        try:
            with self.gate.claim(self.peer.name, question.lease_id, question.source) as claim:
                self.talk.say(GO, greeting)
                digest = move(claim)
                claim.check()
        except TransferError as error:
            self.talk.say(NO, pack_error(error))
        else:
            self.talk.say(DONE, digest)


class Reception:
    """Takes in visitors, up to a number of them."""

    def __init__(
        self, name: str, gate: Gate, make_host: Callable[[Visitor], Host], max_visits: int
    ) -> None:
        self._name = name
        self._gate = gate
        self._make_host = make_host
        self._max_visits = max_visits
        self._visits: dict[threading.Thread, tuple[Talk, Host]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def receive(self, connection: socket.socket, peer: PeerInfo) -> None:
        """The whole visit, in the thread of the connection."""
        talk = Talk(connection)
        host = self._enter(talk, peer)
        if host is None:
            talk.close()
            return
        try:
            host.serve()
        except TalkEnded:
            pass
        except MalformedMessage as error:
            _log.warning("%s: closed the connection of %s: %s", self._name, peer.name, error)
        except OSError as error:
            _log.info("%s: the visit of %s broke: %s", self._name, peer.name, error)
        finally:
            self._leave(talk, host)

    def close(self, timeout_s: float) -> None:
        """End all visits. Safe to call twice."""
        with self._lock:
            self._closed = True
            visits = dict(self._visits)
        for talk, host in visits.values():
            talk.shutdown()
            host.stop()
        deadline = time.monotonic() + timeout_s
        for thread in visits.keys() - {threading.current_thread()}:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.error("%s: a visit still goes on after %g s", self._name, timeout_s)

    def _enter(self, talk: Talk, peer: PeerInfo) -> Host | None:
        with self._lock:
            if self._closed:
                return None
            if len(self._visits) >= self._max_visits:
                _log.warning("%s: turned %s away: too many visits", self._name, peer.name)
                return None
            host = self._make_host(Visitor(peer, talk, self._gate))
            self._visits[threading.current_thread()] = talk, host
        return host

    def _leave(self, talk: Talk, host: Host) -> None:
        try:
            talk.close()
            host.close()
        finally:
            with self._lock:
                self._visits.pop(threading.current_thread(), None)
