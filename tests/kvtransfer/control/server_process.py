"""An owner in a process of its own: answers calls until its standard input ends."""

import json
import os
import sys
import time

from stafette.kvtransfer.control.auth import Identity
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.endpoint import NAME
from stafette.kvtransfer.control.server import ControlServer, SlowOperation
from stafette.kvtransfer.transport import PeerInfo


def make_memory(peer: PeerInfo, content: object) -> object:
    fd = os.memfd_create("content")
    os.write(fd, bytes(content))
    return len(content), [fd]


def main() -> None:
    options = json.loads(sys.argv[1])
    name, epoch, host_id = "owner", options.get("epoch", 7), options.get("host_id", "this host")
    server = None

    def identity() -> Identity:
        return Identity(PeerInfo(name, epoch, host_id, {NAME: server.endpoint.pack()}))

    operations = {
        "echo": lambda peer, payload: payload,
        "memory": make_memory,
        "bytes": lambda peer, count: bytes(count),
        "nap": SlowOperation(lambda peer, seconds: time.sleep(seconds)),
        "exit": lambda peer, status: os._exit(status),
    }
    config = ControlConfig(
        token=b"the token of this cluster", digest=b"model-a", port=options.get("port", 0)
    )
    server = ControlServer(config, identity, operations, lambda *stream: stream[1].close())
    print(json.dumps([name, epoch, host_id, server.endpoint.pack()]), flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
