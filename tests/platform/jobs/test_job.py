"""The fleet as a Ray job, submitted to a cluster that `ray start` has made."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
PATIENCE_S = 240.0
FLEET = """\
model: smollm2
engine: {max_model_len: 512, num_kv_blocks: 64, num_threads: 1}
pools: {aggregated: {num_cpus: 0.5}}
"""


@pytest.fixture
def environment(free_port):
    """What a user's shell has, for the cluster of this test."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_port()}",
        "STAFETTE_TOKEN": "the token of a cluster with a job",
        "STAFETTE": str(Path(sys.executable).with_name("stafette")),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # an active venv
    }
    return {name: value for name, value in os.environ.items() if "RAY" not in name} | own


@pytest.fixture
def cluster(environment, tmp_path, free_port):
    dashboard = environment["RAY_API_SERVER_ADDRESS"].rpartition(":")[2]
    options = [f"--port={free_port()}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    options += ["--include-dashboard=true", "--disable-usage-stats", "--block"]
    ports = [
        f"--{name}-port={free_port()}" for name in ("ray-client-server", "dashboard-agent-listen")
    ]
    with (tmp_path / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [RAY, "start", "--head", *options, *ports], env=environment, stdout=log, stderr=log
        )
    yield process
    processes = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE_S)
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive


def run(environment, *command, patience_s=PATIENCE_S) -> str:
    """Return what a command says; again when the cluster is not there yet."""
    until = time.monotonic() + patience_s
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        if done.returncode == 0:
            return done.stdout + done.stderr
        assert time.monotonic() < until, done.stdout + done.stderr
        time.sleep(1)


def await_word(environment, word: str) -> str:
    until = time.monotonic() + PATIENCE_S
    while word not in (said := run(environment, RAY, "job", "logs", "stafette")):
        assert time.monotonic() < until, said
        time.sleep(1)
    return said


def test_a_job_serves_until_it_is_stopped(cluster, environment, tmp_path, free_port):
    config, port = tmp_path / "fleet.yaml", free_port()
    config.write_text(FLEET)
    script = str(ROOT / "examples/jobs/serve.sh")

    run(environment, RAY, "job", "list")  # the cluster is there
    run(environment, "bash", script, str(config), "--set", f"frontend.port={port}", patience_s=0)
    await_word(environment, "ready at")
    body = {"model": "smollm2", "prompt": "The relay", "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4

    run(environment, RAY, "job", "stop", "stafette")

    assert "stopping: what is under way is finished first" in await_word(environment, "stopping")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
