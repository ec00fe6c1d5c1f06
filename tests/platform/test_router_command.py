"""`stafette router`, as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from stafette.platform import cli
from stafette.platform.commands import router

COMMAND = [sys.executable, "-P", "-m", "stafette", "--log-level", "warning", "router"]
PREFIX = "/v1/router"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Return the URL of a router with a token, and what is needed to ask it."""
    folder = tmp_path_factory.mktemp("router")
    (folder / "token").write_text("right\n")
    (folder / "router.json").write_text(json.dumps({"service": {"block_size": 32, "port": 0}}))
    process = subprocess.Popen(
        [*COMMAND, "serve", "--config", f"{folder}/router.json", "--block-size", "16"]
        + ["--token-file", f"{folder}/token", "--policy", "round_robin"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = re.search(r"ready at (\S+)", process.stdout.readline())[1]
    yield url, f"{folder}/token"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()


def post(url, name, **fields):
    headers = {"content-type": "application/json", "authorization": "Bearer right"}
    body = json.dumps(fields).encode()
    request = urllib.request.Request(f"{url}{PREFIX}/{name}", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def run(capsys, *arguments):
    status = cli.main(["router", *map(str, arguments)])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_decisions_are_explained_as_text_and_as_json(running, capsys):
    url, token = running
    for worker in ("a", "b"):
        post(url, "register", worker=worker, block_size=16)
    for number in range(4):
        post(url, "select", request_id=f"r{number}", token_ids=list(range(64)))

    _, text, _ = run(capsys, "explain", "--url", url, "--token-file", token, "--last", 2)
    _, one, _ = run(capsys, "explain", "--url", url, "--token-file", token, "--request", "r1")
    _, as_json, _ = run(capsys, "explain", "--url", url, "--token-file", token, "--json")
    _, workers, _ = run(capsys, "workers", "--url", url, "--token-file", token)

    assert [line.split(":")[0] for line in text.splitlines() if "tokens to" in line] == ["r3", "r2"]
    assert "(round_robin," in text
    assert one.startswith("r1: 64 tokens to ")
    assert [each["request_id"] for each in json.loads(as_json)["decisions"]][:2] == ["r3", "r2"]
    assert [line.split()[0] for line in workers.splitlines()[1:3]] == ["a", "b"]


def test_what_goes_wrong_is_one_line(running, capsys):
    url, token = running

    refused = run(capsys, "workers", "--url", url)
    unknown = run(capsys, "explain", "--url", url, "--token-file", token, "--request", "nobody")
    nobody = run(capsys, "explain", "--url", "http://127.0.0.1:1")
    no_url = run(capsys, "explain", "--url", "here")

    for (status, out, err), told in (
        (refused, "must be `Bearer TOKEN`, with this service's token"),
        (unknown, "request = 'nobody': is not among the last"),
        (nobody, "the router at http://127.0.0.1:1 does not answer"),
        (no_url, "url = 'here': must be http://HOST:PORT"),
    ):
        assert (status, out) == (1, "")
        assert told in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "content", "told"),
    [
        (["--port", "99999"], "", "service.port = 99999: must be at most 65535"),
        (["--config", "FILE"], "router: [", "--config"),
        (["--config", "FILE"], "[]", "must hold names with their values"),
        (["--config", "FILE"], "router: {polcy: {}}", "did you mean policy?"),
        (["--config", "missing"], "", "cannot be read"),
        (["--key-file", "FILE"], "short", "must hold at least 16 characters"),
        (["--key-file", "FILE"], " \n", "is empty"),
        (["--token-file", "missing"], "", "cannot be read"),
        (["--peer", "10.0.0.2:8091"], "", "is needed where there are other routers"),
        (["--peer", "nowhere", "--key-file", "FILE"], "k" * 16, "must be host:port"),
        (["--gossip-address", "tcp://1.2.3.4.5:1", "--key-file", "FILE"], "k" * 16, "bound"),
        (["--tls-keyfile", "x"], "", "needs tls_certfile too"),
    ],
)
def test_a_router_that_cannot_be_served_says_why(tmp_path, capsys, arguments, content, told):
    file = tmp_path / "file"
    file.write_text(content)
    given = [str(file) if one == "FILE" else one for one in arguments]

    status, _, err = run(capsys, "serve", *(["--port", 0] if "--port" not in given else []), *given)

    assert status == 1
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_port_in_use_is_told(running, capsys):
    port = running[0].rpartition(":")[2]

    status, _, err = run(capsys, "serve", "--port", port)

    assert status == 1
    assert f"port = '127.0.0.1:{port}': cannot listen there" in err


def test_secrets_come_from_the_environment_too(monkeypatch):
    parser = cli._parser()
    arguments = parser.parse_args(["router", "serve"])
    monkeypatch.setitem(os.environ, "STAFETTE_ROUTER_KEY", "k" * 20)
    monkeypatch.setitem(os.environ, "STAFETTE_ROUTER_TOKEN", "t")

    found = router.secrets_of(arguments, router.settings(arguments))

    assert (found.key, found.token) == (b"k" * 20, "t")
    assert "kkk" not in repr(found)


def test_flags_stand_over_the_file(tmp_path):
    file = tmp_path / "router.yaml"
    file.write_text(
        "service: {port: 1, block_size: 32}\nadmission: {max_target_queue_ms: 5}\n"
        "router: {policy: {name: random}, cost: {crowd_weight: 0.5}}\ngossip: {beat_s: 0.2}\n"
    )
    flags = ["--port", "2", "--policy", "kv", "--max-target-queue-ms", "7", "--peer", "h:1"]

    arguments = cli._parser().parse_args(["router", "serve", "--config", str(file), *flags])
    config = router.settings(arguments)

    assert (config.service.port, config.service.block_size) == (2, 32)
    assert (config.router.policy.name, config.router.cost.crowd_weight) == ("kv", 0.5)
    assert config.admission.max_target_queue_ms == 7.0
    assert (config.gossip.peers, config.gossip.beat_s) == (("h:1",), 0.2)
