"""Which etcd is asked, and as whom: endpoints, clusters, passwords and certificates."""

import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.errors import DirectoryUnavailable, InvalidValue

CLUSTER_OPTIONS = ("--heartbeat-interval", "50", "--election-timeout", "500")
RECORD = PeerRecord(1, b"m")


def config(*endpoints: str, **options) -> EtcdConfig:
    return EtcdConfig(endpoints=endpoints, **options)


def test_an_etcd_may_be_named_by_its_hosts_name(open_etcd, etcd):
    directory = open_etcd(f"http://localhost:{etcd.client_port}")

    directory.publish("p", RECORD)

    assert directory.find("p") == RECORD


def test_an_endpoint_where_nobody_listens_is_passed_over(open_etcd, etcd):
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        directory = open_etcd(f"http://127.0.0.1:{bound.getsockname()[1]}", etcd.endpoint)

        directory.publish("p", RECORD)

        assert directory.find("p") == RECORD


def test_an_endpoint_that_hangs_costs_a_part_of_the_first_calls_time(open_etcd, etcd):
    with socket.create_server(("127.0.0.1", 0)) as hung:
        hung_endpoint = f"http://127.0.0.1:{hung.getsockname()[1]}"
        directory = open_etcd(hung_endpoint, etcd.endpoint, timeout_s=1.0)

        directory.publish("p", RECORD)

        assert directory.get("p", fresh=True, timeout_s=0.4) == RECORD


@pytest.fixture
def three(make_etcd):
    """A cluster of three."""
    members = [make_etcd(name=f"n{number}", options=CLUSTER_OPTIONS) for number in range(3)]
    together = ",".join(member.cluster for member in members)
    for member in members:
        member.cluster = together
        member.launch()
    yield members
    for member in members:
        member.kill()


def leader_of(members):
    """Return the leader, when all agree on one."""
    answers = [member.ask("maintenance/status") for member in members]
    names = {answer["header"]["member_id"]: m for answer, m in zip(answers, members, strict=True)}
    (leader,) = {answer["leader"] for answer in answers}
    return names[leader]


def test_a_cluster_that_loses_its_leader_goes_on_and_one_without_quorum_does_not(
    three, open_any, make_picture, eventually
):
    eventually(lambda: all(member.healthy() for member in three))
    options = config(*(member.endpoint for member in three))
    here, there = (open_any("etcd", options, ttl_s=4.0, timeout_s=1.0) for _ in range(2))
    here.publish("p", RECORD, timeout_s=10)
    picture = make_picture()
    there.watch(picture)
    picture.await_that(lambda: "p" in picture.peers)

    leader = leader_of(three)
    leader.kill()
    here.publish("q", RECORD, timeout_s=10)
    picture.await_that(lambda: set(picture.peers) == {"p", "q"})
    next(member for member in three if member is not leader).kill()
    with pytest.raises(DirectoryUnavailable):
        here.publish("r", RECORD, timeout_s=0.5)

    assert set(there.list()) == {"p", "q"}
    assert picture.kinds() == ["Joined"]


@pytest.fixture
def guarded(make_etcd, cluster):
    """An etcd with users: root, and one who may do everything in this cluster, and one read."""
    etcd = make_etcd(options=("--bcrypt-cost", "8"))
    etcd.start()
    prefix = f"/stafette/{cluster}/".encode()
    etcd.ask("auth/user/add", name="root", password="secret")
    etcd.ask("auth/user/grant", user="root", role="root")
    for name, kind in (("worker", 2), ("reader", 0)):
        etcd.ask("auth/user/add", name=name, password="secret")
        etcd.ask("auth/role/add", name=name)
        etcd.allow(name, kind, prefix)
        etcd.ask("auth/user/grant", user=name, role=name)
    etcd.ask("auth/enable")
    yield etcd
    etcd.kill()


def test_who_knows_the_password_may_publish_and_logs_in_again_when_that_is_over(
    guarded, open_any, make_picture, eventually
):
    options = config(guarded.endpoint, user="worker", password="secret")
    here, there = open_any("etcd", options), open_any("etcd", options)
    registration, picture = here.publish("p", RECORD), make_picture()
    there.watch(picture)
    picture.await_that(lambda: "p" in picture.peers)

    guarded.kill()
    guarded.start()
    root = guarded.ask("auth/authenticate", name="root", password="secret")["token"]
    guarded.ask("auth/user/changepw", root, name="worker", password="secret")  # ends its logins
    beats = here.counters().beats
    here.publish("q", RECORD)
    picture.await_that(lambda: "q" in picture.peers)
    eventually(lambda: here.counters().beats > beats)

    assert registration.state == "held"
    assert registration.withdraw()


def test_threads_whose_login_ends_log_in_again_and_none_is_refused(guarded, open_any):
    here = open_any("etcd", config(guarded.endpoint, user="worker", password="secret"))
    here.publish("p", RECORD)
    names = [f"p{number}" for number in range(40)]

    with ThreadPoolExecutor(8) as pool:
        for first in range(0, len(names), 8):
            root = guarded.ask("auth/authenticate", name="root", password="secret")["token"]
            guarded.ask("auth/user/changepw", root, name="worker", password="secret")
            list(pool.map(partial(here.publish, record=RECORD), names[first : first + 8]))

    assert set(here.list()) == {"p", *names}


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        ({"user": "worker", "password": "wrong"}, "authentication failed"),
        ({}, "user name is empty"),
        ({"user": "reader", "password": "secret"}, "permission denied"),
    ],
)
def test_who_may_not_is_told_at_once(guarded, open_any, credentials, reason):
    directory = open_any("etcd", config(guarded.endpoint, **credentials), timeout_s=30.0)

    started = time.monotonic()
    with pytest.raises(DirectoryUnavailable, match=reason):
        directory.publish("p", RECORD)

    assert time.monotonic() - started < 15


def test_who_may_only_read_sees_who_is_there(guarded, open_any):
    publisher = open_any("etcd", config(guarded.endpoint, user="worker", password="secret"))
    reader = open_any("etcd", config(guarded.endpoint, user="reader", password="secret"))

    publisher.publish("p", RECORD)

    assert reader.find("p") == RECORD


@pytest.fixture
def certificate(tmp_path):
    """Files of a certificate for this host, and of its key; it is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl binary was found, which would make a certificate")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=etcd"
    san = "-addext subjectAltName=IP:127.0.0.1 -days 2"
    out = f"-out {files[0]} -keyout {files[1]}"
    subprocess.run(f"{command} {san} {out}".split(), check=True, capture_output=True)
    return files


def test_server_and_client_know_each_other_by_certificates_and_strangers_stay_out(
    make_etcd, open_any, certificate, eventually
):
    cert, key = certificate
    options = ("--cert-file", cert, "--key-file", key)
    etcd = make_etcd(
        scheme="https", options=(*options, "--client-cert-auth", "--trusted-ca-file", cert)
    )
    etcd.start()
    pems = {"ca_cert": cert.read_bytes()}
    pair = {"client_cert": cert.read_bytes(), "client_key": key.read_bytes()}
    known = open_any("etcd", config(etcd.endpoint, **pems, **pair))
    nameless = open_any("etcd", config(etcd.endpoint, **pems), timeout_s=0.5)
    doubting = open_any("etcd", config(etcd.endpoint, **pair), timeout_s=0.5)

    known.publish("p", RECORD, timeout_s=20)

    assert known.find("p") == RECORD
    for refused in (nameless, doubting):
        with pytest.raises(DirectoryUnavailable):
            refused.get("p", fresh=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpoints": ()}, "at least one"),
        ({"endpoints": ("127.0.0.1:2379",)}, "http://host:2379"),
        ({"endpoints": ("http://127.0.0.1",)}, "http://host:2379"),
        ({"endpoints": ("http://127.0.0.1:x",)}, "http://host:2379"),
        ({"endpoints": ("http://a:1", "https://b:1")}, "all http or all https"),
        ({"prefix": "stafette"}, "must begin with a slash"),
        ({"prefix": "/stafette/"}, "must begin with a slash"),
        ({"user": "worker"}, "together with a password"),
        ({"endpoints": ("https://a:1",), "client_cert": b"x"}, "together with client_key"),
        ({"ca_cert": b"x"}, "https://"),
        ({"backoff_s": 0.0}, "above 0"),
        ({"backoff_s": 2.0}, "max_backoff_s"),
    ],
)
def test_a_wrong_option_is_refused_with_its_remedy(options, told):
    with pytest.raises(InvalidValue, match=told):
        EtcdConfig(**options)


def test_secrets_are_not_shown():
    shown = repr(
        EtcdConfig(
            endpoints=("https://a:1",),
            user="u",
            password="pst",
            client_cert=b"c",
            client_key=b"key",
        )
    )

    assert "pst" not in shown
    assert "key" not in shown
