"""How commands find the workers of a fleet: once, and by name."""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from stafette.platform.commands.reaching import Workers
from stafette.platform.commands.talking import AskingFailed

FLEET = [{"name": "decode-b", "address": "host:2"}, {"name": "decode-a", "address": "host:1"}]


class Frontend(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": FLEET}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def frontend():
    with HTTPServer(("127.0.0.1", 0), Frontend) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def workers(frontend, monkeypatch):
    monkeypatch.setenv("STAFETTE_TOKEN", "the token of this cluster")
    url = f"http://127.0.0.1:{frontend.server_port}"
    given = {"url": url, "key": None, "ca_file": None, "insecure": False}
    return Workers(argparse.Namespace(config=None, **given))


def test_all_or_some_are_found_with_one_question(workers, frontend):
    assert list(workers.addresses()) == ["decode-a", "decode-b"]
    assert workers.addresses(["decode-b"]) == {"decode-b": "host:2"}
    assert workers.address("decode-a") == "host:1"
    assert frontend.asked == ["/v1/workers"] * 3


def test_one_that_is_not_there_is_named_beside_those_that_are(workers):
    with pytest.raises(AskingFailed, match="decode-c.*not in the fleet.*decode-b, decode-a"):
        workers.addresses(["decode-a", "decode-c"])
