"""Servers that play what a test tells them to, started and ended for it."""

import pytest
from tests.platform.bench.played import PlayedServer, tokens


@pytest.fixture
def serve():
    """Start servers; end them all."""
    started = []

    def start(play=tokens, **settings) -> PlayedServer:
        started.append(PlayedServer(play, **settings).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(serve):
    return serve()
