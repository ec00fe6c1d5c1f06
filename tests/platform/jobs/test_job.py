"""The fleet as a Ray job, submitted to a cluster of two hosts that `ray start` has made."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import pytest
from tests.platform.jobs.hosts import Hosts, why_not

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
RAY, STAFETTE = (str(Path(sys.executable).with_name(name)) for name in ("ray", "stafette"))
PATIENCE_S = 240.0
PORT, RAY_PORT, DASHBOARD_PORT = 8000, 6379, 8265  # of hosts that are ours alone
FLEET = """\
model: smollm2
engine: {max_model_len: 1024, num_kv_blocks: 256, num_threads: 1}
pools:
  prefill: {num_cpus: 0.5, resources: {near: 1}}
  decode: {num_cpus: 0.5, resources: {far: 1}}
frontend: {host: 0.0.0.0, resources: {near: 1}}
"""


@pytest.fixture(scope="module")
def hosts():
    if reason := why_not():
        pytest.skip(reason)
    with Hosts().up() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def environment(hosts):
    """What a user's shell has, on a machine that reaches the cluster."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://{hosts.addresses['near']}:{DASHBOARD_PORT}",
        "STAFETTE_TOKEN": "the token of a cluster with a job",
        "STAFETTE": STAFETTE,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # an active venv
    }
    return {name: value for name, value in os.environ.items() if "RAY" not in name} | own


@pytest.fixture(scope="module")
def cluster(hosts, environment, tmp_path_factory):
    near = hosts.addresses["near"]
    head = ["--head", f"--port={RAY_PORT}", f"--dashboard-host={near}"]
    logs = tmp_path_factory.mktemp("ray")
    with node(hosts, "near", environment, logs, *head):
        run(environment, RAY, "job", "list")  # the head is there
        with node(hosts, "far", environment, logs, f"--address={near}:{RAY_PORT}"):
            yield


@pytest.fixture
def job(cluster, environment):
    """The job's name, which is free again afterwards."""
    yield "stafette"
    for verb in ("stop", "delete"):  # either may have nothing left to do
        subprocess.run([RAY, "job", verb, "stafette"], env=environment, timeout=PATIENCE_S)


@contextmanager
def node(hosts, name, environment, logs, *options):
    """Run Ray on a host, as long as it takes."""
    offer = f"--resources={json.dumps({name: 10})}"
    where = [f"--node-ip-address={hosts.addresses[name]}", "--num-cpus=2", offer]
    command = hosts.command(name, RAY, "start", *options, *where, "--disable-usage-stats")
    with (logs / name).open("wb") as log:
        process = subprocess.Popen([*command, "--block"], env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
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


def await_word(environment, word: str, log: Path) -> str:
    """Follow what the job says to a word, by one process: each start of Ray's command is costly."""
    until = time.monotonic() + PATIENCE_S
    with log.open("wb") as out:
        follow = [RAY, "job", "logs", "stafette", "--follow"]
        process = subprocess.Popen(follow, env=environment, stdout=out, stderr=out)
    try:
        while word not in (said := log.read_text(errors="replace")):
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    return said


def ask(url: str, prompt: str) -> int:
    """Return how many tokens a prompt is answered with."""
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 32, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)["usage"]["completion_tokens"]


def ask_until_handed_over(environment, url: str, worker: str) -> None:
    """Ask four at a time: who decodes some does not compute the others' prompts, if they meet."""
    until, numbers = time.monotonic() + PATIENCE_S, count()
    asked = (STAFETTE, "worker", "stats", worker, "--url", url)
    with ThreadPoolExecutor(4) as pool:
        while True:
            prompts = [f"{next(numbers)}: the relay runs on. " * 60 for _ in range(4)]
            assert list(pool.map(ask, [url] * len(prompts), prompts)) == [32] * len(prompts)
            moved = json.loads(run(environment, *asked, patience_s=0))["moved_bytes"]
            if moved.get("tcp", 0) > 0:
                return
            assert time.monotonic() < until, moved


def test_a_job_serves_on_two_hosts_until_it_is_stopped(job, hosts, environment, tmp_path):
    config, url = tmp_path / "fleet.yaml", f"http://{hosts.addresses['near']}:{PORT}"
    config.write_text(FLEET)
    script = str(ROOT / "examples/jobs/serve.sh")

    run(environment, "bash", script, str(config), "--set", f"frontend.port={PORT}", patience_s=0)
    assert f"ready at {url}" in await_word(environment, "ready at", tmp_path / "start")
    with urllib.request.urlopen(f"{url}/v1/workers", timeout=PATIENCE_S) as answer:
        workers = {worker["role"]: worker for worker in json.load(answer)["data"]}
    for role, host in (("prefill", "near"), ("decode", "far")):
        assert workers[role]["address"].startswith(f"{hosts.addresses[host]}:")
    ask_until_handed_over(environment, url, workers["decode"]["name"])

    run(environment, RAY, "job", "stop", job)

    said = await_word(environment, "stopping", tmp_path / "end")
    assert "stopping: what is under way is finished first" in said
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url}/health", timeout=10)
