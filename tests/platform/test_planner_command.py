"""`stafette planner`: what it asks, and how plans read."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from stafette.platform.cli import main
from stafette.platform.commands.planner import seconds
from stafette.platform.frontend.errors import InvalidSetting

PLAN = {
    "age_s": 0.4,
    "since_s": 61.0,
    "plans": 120,
    "replicas": {"prefill": 1, "decode": 2},
    "flips": [{"worker": "decode-a", "before": "decode", "role": "both"}],
    "release": ["decode-b"],
    "violations": [
        {"target": "ttft", "limit_ms": 500.0, "expected_ms": None, "remedy": "raise max_replicas"}
    ],
    "held": None,
    "explanation": {
        "observed": {"rate": 1.23456},
        "predicted": {},
        "capacity": {},
        "needed": {"prefill": 1},
        "decided_by": "max_replicas",
        "notes": ["forecast by constant"],
    },
}
POOL = {"role": "decode", "min_replicas": 1, "max_replicas": 4, "target": 2, "ready": 1}
TOLD = {
    "mode": "on",
    "pools": {"decode": POOL | {"planned": 2, "pin": {"replicas": 2, "left_s": 90.0}}},
    "plans": [PLAN],
    "effects": [
        {"age_s": 2.0, "subject": "decode", "wish": "3", "state": "failed", "reason": "no room"}
    ],
}


class Frontend(BaseHTTPRequestHandler):
    def _answer(self):
        length = int(self.headers.get("content-length") or 0)
        self.server.asked.append((self.command, self.path, self.rfile.read(length)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.told).encode())

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_):
        pass


@pytest.fixture
def frontend():
    with HTTPServer(("127.0.0.1", 0), Frontend) as server:
        server.asked, server.told = [], TOLD
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_plan_reads_from_what_it_wants_to_why(frontend, capsys):
    assert main(["planner", "explain", "--last", "2", "--url", frontend.url]) == 0

    assert frontend.asked[0][:2] == ("GET", "/v1/planner?last=2")
    assert capsys.readouterr().out.splitlines() == [
        "61 s ago: prefill 1, decode 2; by max_replicas",
        "  decode-a: decode -> both",
        "  decode-b leaves",
        "  observed: rate 1.235",
        "  needed: prefill 1",
        "  ttft ? ms, not 500: raise max_replicas",
        "  forecast by constant",
        "2 s ago decode: 3: failed: no room",
        "planner: on",
        "  decode: 1 ready, 2 planned, of 1..4, pinned to 2 for 90 s",
    ]


def test_pins_go_to_the_frontend(frontend):
    assert main(["planner", "pin", "decode", "3", "--for", "1.5h", "--url", frontend.url]) == 0
    assert main(["planner", "unpin", "a/b", "--url", frontend.url]) == 0

    (posted, deleted) = frontend.asked
    assert posted[:2] == ("POST", "/v1/planner/pins")
    assert json.loads(posted[2]) == {"pool": "decode", "replicas": 3, "for_s": 5_400.0}
    assert deleted[:2] == ("DELETE", "/v1/planner/pins/a%2Fb")


def test_a_fleet_without_a_planner_says_what_to_set(frontend, capsys):
    frontend.told = {"mode": "off", "pools": {}, "plans": [], "effects": []}

    assert main(["planner", "explain", "--url", frontend.url]) == 1
    assert "set planner.mode" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["30", "m", "-3m", "0s", "3 m", "1w"])
def test_a_time_without_a_unit_is_refused(wrong):
    with pytest.raises(InvalidSetting, match="such as 90s, 30m, 2h or 1d"):
        seconds(wrong)
