"""A fleet on Ray as a user starts it: `stafette serve`, in a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import openai
import psutil
import pytest

PATIENCE_S = 240.0
FLEET = """\
model: smollm2
cluster: {token: the token of a tested cluster}
engine: {max_model_len: 1024, num_kv_blocks: 512, num_threads: 1}
pools:
  prefill: {num_cpus: 0.5}
  decode: {replicas: 2, num_cpus: 0.5}
frontend: {replicas: 2}
service: {beat_s: 0.2, silence_s: 3}
"""

# Mock workers, of which there are none at first. One takes 0.3 s for a prompt of the tests.
PLANNED_FLEET = """\
model: smollm2
cluster: {token: the token of a tested cluster}
engine: {max_model_len: 4096, num_kv_blocks: 2048}
pools:
  prefill: &asleep
    replicas: 0
    num_cpus: 0.1
    worker_class: mock
    mock: {step_ms: 20, prefill_ms_per_token: 1}
  decode: *asleep
service: {beat_s: 0.3, silence_s: 5}
planner:
  mode: on
  slo: {ttft_ms: 2000, ttft_percentile: 50, itl_ms: 200, itl_percentile: 50}
  interval_s: 0.5
  replicas_interval_s: 1
  bin_s: 2
  hold_down_s: 4
  pools:
    prefill: {min_replicas: 0, max_replicas: 3, startup_s: 5}
    decode: {min_replicas: 0, max_replicas: 2, startup_s: 5}
"""


class Command:
    """`stafette ...` with its output as it comes."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stafette", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def await_line(self, words: str) -> str:
        until = time.monotonic() + PATIENCE_S
        while (line := self._lines.get(timeout=max(0.1, until - time.monotonic()))) is not None:
            if words in line:
                return line
        raise AssertionError("\n".join(self.said))

    def end(self) -> int:
        """Stop it as Ctrl-C does; return its exit status."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            self._lines.put(line.rstrip())
        self._lines.put(None)
        self.process.stdout.close()


class Fleet:
    """The fleet that one `stafette serve` has started."""

    def __init__(self, settings: Path, port: int) -> None:
        self.settings, self.port = settings, port
        self.url = f"http://127.0.0.1:{self.port}"
        where = ["--address", "local", "--set", f"frontend.port={self.port}"]
        self.command = Command("serve", str(settings), *where)
        try:
            self.ray_address = self.command.await_line("Ray is at").rpartition(" ")[2]
            self.command.await_line("ready at")
        except BaseException:
            self.command.end()
            raise

    def update(self, *assignments: str) -> str:
        """Deploy the same fleet with other settings; return what the command says."""
        sets = [f"frontend.port={self.port}", *assignments]
        options = [word for each in sets for word in ("--set", each)]
        where = ["--address", self.ray_address, "--detach"]
        command = Command("serve", str(self.settings), *where, *options)
        try:
            command.await_line("ready at")
            assert command.process.wait(PATIENCE_S) == 0
        finally:
            command.process.kill()
            command.process.wait()
        return "\n".join(command.said)

    @contextmanager
    def second_node(self, resource: str):
        """Let another raylet of this machine be a node with a resource of its own."""
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block"]
        options = [f"--address={self.ray_address}", "--num-cpus=2", "--disable-usage-stats"]
        offer = f"--resources={json.dumps({resource: 2})}"
        environment = os.environ | {"RAY_AUTH_MODE": "token"}  # which `ray start` must be told
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [*command, *options, offer], stdout=log, stderr=log, env=environment
            )
            try:
                yield psutil.Process(process.pid)
            finally:
                process.terminate()
                process.wait(PATIENCE_S)

    def workers(self) -> list[dict]:
        return self.ask("/v1/workers")["data"]

    def ask(self, path: str) -> dict:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def names(self, role: str) -> set[str]:
        met = [w for w in self.workers() if w.get("role") == role]  # others have said nothing yet
        return {w["name"] for w in met if not w["draining"]}

    def processes(self, title: str) -> list[psutil.Process]:
        """Return the fleet's processes of that title: Ray names them by their deployment."""
        ours = psutil.Process(self.command.process.pid).children(recursive=True)
        found = []
        for process in ours:
            try:
                if title in " ".join(process.cmdline()) and process.status() != "zombie":
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def logged(self) -> list[str]:
        """Return what its replicas have said so far."""
        opened = [p.open_files() for p in self.processes("ServeReplica:stafette")]
        logs = [Path(file.path) for files in opened for file in files]
        errors = [log.read_text() for log in logs if log.suffix == ".err"]
        return [line for text in errors for line in text.splitlines()]

    def client(self) -> openai.AsyncOpenAI:
        # A frontend that dies breaks its clients' connections: like any, they try again.
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="-", max_retries=3, timeout=PATIENCE_S
        )


@contextmanager
def running(settings: Path, port: int):
    fleet = Fleet(settings, port)
    processes = psutil.Process(fleet.command.process.pid).children(recursive=True)
    yield fleet
    assert fleet.command.end() == 0, "\n".join(fleet.command.said)
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive


@pytest.fixture(scope="module")
def start_fleet():
    return running


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, free_port):
    settings = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    settings.write_text(FLEET)
    with running(settings, free_port()) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def planned(tmp_path_factory, free_port):
    """A fleet of mock workers whose size and roles follow the load."""
    settings = tmp_path_factory.mktemp("planned") / "fleet.yaml"
    settings.write_text(PLANNED_FLEET)
    with running(settings, free_port()) as fleet:
        yield fleet


@pytest.fixture
def await_that():
    def wait(condition) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, "it did not come about"
            time.sleep(0.1)

    return wait


@pytest.fixture
def command():
    return Command


@pytest.fixture(scope="module")
def expected():
    """What one engine alone answers."""
    from stafette.workers import LLM, SamplingParams

    llm = LLM(model="smollm2", max_model_len=1024, num_kv_blocks=512, num_threads=1)

    def answer(prompt: str, max_tokens: int) -> str:
        wanted = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        (output,) = llm.generate(prompt, wanted, use_tqdm=False)
        return output.outputs[0].text

    yield answer
    llm.close()
