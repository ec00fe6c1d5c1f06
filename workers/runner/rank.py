"""A tensor-parallel rank other than the first: a process that does what the first one is told.

Started as `python -m stafette.workers.runner.rank FD`, FD being its end of a socket pair; on
another host as `... rank HOST PORT RANK`, to call the first rank there, with the cluster's token as
the first line of its stdin. It ends when its socket or that stdin does, whatever it is doing, so it
never outlives its parent.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any

import torch

from stafette.workers.config import EngineConfig
from stafette.workers.errors import EngineError
from stafette.workers.runner.collectives import Seat, attend_meeting, join
from stafette.workers.runner.device import choose_device
from stafette.workers.runner.far_ranks import call
from stafette.workers.runner.kv_member import KvMember
from stafette.workers.runner.link import Link, unpack_inputs
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.opening import open_checkpoint

logger = logging.getLogger(__name__)
Message = dict[str, Any]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    link, host = _meet(sys.argv[1:])
    inbox: queue.Queue[Message] = queue.Queue()
    threading.Thread(target=_listen, args=(link, inbox), daemon=True).start()
    link.send({"imported": True})
    runner, member = _start(link, inbox.get(), host), None
    while runner is not None:  # `member` only has to live
        message = inbox.get()
        if message["op"] == "forward":
            _forward(link, runner, message)
        elif message["op"] == "open_member":
            member, told = _open_member(runner, message, host)
            link.send(told)
        else:
            link.send(_answer(runner, message))


def _meet(arguments: list[str]) -> tuple[Link, str]:
    """Return the link to the first rank, and where other hosts reach this one, if there are any."""
    if len(arguments) == 1:
        return Link(socket.socket(fileno=int(arguments[0]))), ""
    host, port, rank = arguments
    token = sys.stdin.buffer.readline().rstrip(b"\n")
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    return call(host, int(port), int(rank), token)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _listen(link: Link, inbox: "queue.Queue[Message]") -> None:
    """Hand messages on; leave at once when the parent is gone or says so."""
    try:
        while (message := link.receive())["op"] != "close":
            inbox.put(message)
    except EOFError:
        pass
    os._exit(0)


def _start(link: Link, message: Message, host: str) -> TorchRunner | None:
    """Load this rank's share. None after an error, which the parent then knows."""
    try:
        config = EngineConfig(**message["config"])
        if config.device != "cpu" and torch.cuda.is_available():
            torch.cuda.set_device(message["device"])
        timeout_s = message["timeout_s"]
        store = attend_meeting(message["host"], message["port"], timeout_s)
        leads = message["device"] == 0
        seat = Seat(message["rank"], message["size"], host or message["host"], leads)
        tp = join(store, seat, choose_device(config), timeout_s)
        runner = TorchRunner(config, open_checkpoint(config.model, config.quantization), tp)
    except Exception as error:
        logger.exception("rank %d cannot start", message["rank"])
        link.send(_refusal(error))
        return None
    link.send({"value": None})
    return runner


def _open_member(
    runner: TorchRunner, message: Message, host: str
) -> tuple[KvMember | None, Message]:
    """Let others read and write the shares of this host; answer with its agent's metadata."""
    try:
        member = KvMember(runner, message["settings"], host)
    except Exception as error:
        logger.exception("rank %d: its blocks cannot be handed over", runner.tp.rank)
        return None, _refusal(error)
    return member, {"value": member.metadata}


def _forward(link: Link, runner: TorchRunner, message: Message) -> None:
    """Run a step, without an answer: the first rank has the logits. An error ends the rank."""
    try:
        runner.forward(unpack_inputs(message["inputs"]))
    except Exception as error:
        logger.exception("rank %d: a step failed", runner.tp.rank)
        link.send(_refusal(error))
        sys.exit(1)


def _answer(runner: TorchRunner, message: Message) -> Message:
    try:
        return {"value": getattr(runner, message["op"])(*message["arguments"])}
    except Exception as error:
        return _refusal(error)


def _refusal(error: Exception) -> Message:
    if isinstance(error, EngineError):
        value = error.value if isinstance(error.value, int | float | str) else repr(error.value)
        return {"error": [type(error).__name__, error.field, value, error.remedy]}
    return {"error": ["EngineDead", "rank", f"{type(error).__name__}: {error}", "see its log"]}


if __name__ == "__main__":
    main()
