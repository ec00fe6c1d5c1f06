"""What tests of whole fleets share."""

import random
import socket

import pytest

# Below the ports that systems give to whoever asks for any (32768 and up), above Ray's workers'
# (10002 to 19999): between our look and a server's start, seconds later, nobody takes it.
PORTS = range(20_000, 32_000)


def find_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@pytest.fixture(scope="session")
def free_port():
    return find_port
