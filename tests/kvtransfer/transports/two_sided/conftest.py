"""Both ends of a talk, over TCP on this host."""

import socket

import pytest

from stafette.kvtransfer.transports.visits.talk import Talk


@pytest.fixture
def talks():
    """Make pairs of talks, closed at the end."""
    opened = []

    def pair() -> tuple[Talk, Talk]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        opened.extend([Talk(ours), Talk(theirs)])
        return opened[-2], opened[-1]

    yield pair
    for talk in opened:
        talk.close()
