"""With TLS on the control connection, the blocks are encrypted as well."""

import shutil
import ssl
import subprocess

import numpy as np
import pytest

from stafette.kvtransfer.errors import PeerLost, TransferCancelled, TransferTimedOut

pytestmark = [
    pytest.mark.usefixtures("lending"),
    pytest.mark.parametrize("lending", [False, True], ids=["", "lent"], indirect=True),
]

MIB = 1 << 20
KIB = 1 << 10
BLOCK = 4 * KIB
LARGE = 40 * MIB


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl, which makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=stafette", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True, timeout=20)
    return certificate, key


@pytest.fixture
def tls(certificate):
    file, key = certificate
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file, key)
    client = ssl.create_default_context(cafile=str(file))
    return server, client


@pytest.mark.parametrize("verify", [False, True])
def test_scattered_ranges_arrive(pairs, tls, verify):
    pair = pairs(2 * MIB, tls=tls)
    order = np.random.default_rng(3).permutation(1_000)
    scattered = [(int(i) * 2_000, int(i) * 2_000, 1 + int(i)) for i in order]

    job = pair.read((0, 0, 100), *[(a + 200, b, n) for a, b, n in scattered], verify=verify)

    assert job.outcome() is None
    for start, source, length in scattered:
        into = slice(start + 200, start + 200 + length)
        assert np.array_equal(pair.into.memory[into], pair.source.memory[source : source + length])


def test_large_and_small_jobs_arrive_side_by_side(pairs, tls):
    pair = pairs(8 * MIB, tls=tls, streams=1)

    jobs = [pair.read(), pair.read((0, 0, BLOCK)), pair.read((MIB, MIB, MIB), verify=True)]

    assert [job.outcome() for job in jobs] == [None, None, None]
    assert pair.arrived()


def test_nobody_on_the_way_sees_the_blocks(ends, proxies, pairs, tls):
    owner = ends(tls=tls)
    proxy = proxies(owner)
    pair = pairs(MIB, owner=owner, through=proxy, tls=tls)
    seen = bytearray()
    proxy.look_at = seen.extend

    assert pair.read().outcome() is None

    block = pair.source.memory[:64].tobytes()
    assert len(seen) > MIB
    assert block not in seen


def test_byte_that_changed_on_the_way_ends_the_connection(ends, proxies, pairs, tls):
    owner = ends(tls=tls)
    proxy = proxies(owner)
    pair = pairs(MIB, owner=owner, through=proxy, tls=tls)
    proxy.flip_at = 300 * KIB

    job = pair.read()

    assert isinstance(job.outcome(), PeerLost)
    proxy.flip_at = None
    assert pair.read().outcome() is None
    assert pair.arrived()


def test_cancel_and_deadline_end_a_job_whose_bytes_do_not_come(ends, proxies, pairs, tls):
    owner = ends(tls=tls, streams=1)
    proxy = proxies(owner)
    proxy.hold_after = 300 * KIB
    pair = pairs(LARGE, owner=owner, through=proxy, tls=tls, streams=1)
    first, second = pair.read(), pair.read(timeout_s=0.3)
    assert proxy.reached.wait(20)

    pair.cancel(first)

    assert isinstance(first.outcome(), TransferCancelled)
    assert isinstance(second.outcome(), TransferTimedOut)
    pair.into.memory[:] = 0
    proxy.release()
    assert pair.read((0, 0, BLOCK)).outcome() is None
    assert not pair.into.memory[BLOCK:].any()
