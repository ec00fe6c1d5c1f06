"""An etcd of a benchmark's own, on free ports and in a folder of its own, that can be killed."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

_START_TIMEOUT_S = 30.0
_POLL_S = 0.005


def is_installed() -> bool:
    return shutil.which("etcd") is not None


class EtcdServer:
    """Uses the same ports and the same data after each start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._peer = f"http://127.0.0.1:{_free_port()}"
        self.endpoint = f"http://127.0.0.1:{_free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it answers."""
        options = {
            "data-dir": str(self._folder / "data"),
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": self._peer,
            "initial-advertise-peer-urls": self._peer,
            "initial-cluster": f"default={self._peer}",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["etcd", *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_healthy():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"etcd did not start: see {self._folder / 'log'}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wipe(self) -> None:
        shutil.rmtree(self._folder / "data")

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/health", timeout=1) as answer:
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
