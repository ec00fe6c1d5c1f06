"""What tests of whole fleets share."""

import random
import shutil
import socket
import subprocess

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


@pytest.fixture
def certificate_of(tmp_path):
    """Make certificates of 127.0.0.1 that vouch for themselves, by name: key, certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with the openssl program, which is not installed")

    def make(name: str) -> tuple[str, str]:
        files = tmp_path / f"{name}-key.pem", tmp_path / f"{name}-cert.pem"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        whose = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        out = ["-keyout", files[0], "-out", files[1], "-days", "2"]
        command = ["openssl", "req", "-x509", *curve, *out, *whose]
        subprocess.run(command, check=True, capture_output=True)
        return str(files[0]), str(files[1])

    return make


@pytest.fixture
def certificate(certificate_of):
    return certificate_of("server")
