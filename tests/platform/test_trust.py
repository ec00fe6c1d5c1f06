"""Commands that ask an `https://` server believe whom they are told to believe."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from tests.platform.bench.played import PlayedServer, tokens

from stafette.platform.bench.measured import read_measured
from stafette.platform.cli import main
from stafette.platform.commands import talking

LOAD = ("--isl", "16", "--std", "2", "--osl", "4", "--concurrencies", "2", "--requests", "2")


@pytest.fixture
def server(certificate):
    key, cert = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    server = PlayedServer(tokens, tls=tls).start()
    yield server
    server.stop()


@pytest.fixture
def bench(server, tmp_path):
    def run(*trust: str) -> int:
        where = ("--endpoint", f"mine=https://127.0.0.1:{server.port}", "--name", "x")
        out = ("--output-dir", str(tmp_path / "results"), "--no-report", "--warmup", "0")
        return main(["bench", "run", *where, *out, *LOAD, *trust])

    return run


def test_a_servers_own_ca_is_believed_when_it_is_named(bench, certificate, tmp_path):
    assert bench("--ca-file", certificate[1]) == 0

    (found,) = read_measured(tmp_path / "results/x")
    assert (found.summary.requests, found.summary.failed) == (2, 0)


def test_every_certificate_is_believed_when_that_is_asked_for(bench):
    assert bench("--insecure") == 0


def test_a_certificate_that_nobody_vouches_for_is_refused_with_what_to_do(bench, server, capsys):
    assert bench() == 1

    said = capsys.readouterr().err
    assert "certificate verify failed" in said
    assert "name its CA with --ca-file, or give --insecure" in said
    assert server.chats == 0


def test_only_the_named_ca_is_believed(bench, certificate_of, capsys):
    _, another = certificate_of("another")

    assert bench("--ca-file", another) == 1
    assert "certificate verify failed" in capsys.readouterr().err


def test_tuning_knows_a_server_by_its_own_ca_and_waits_for_none_it_does_not_believe(
    server, certificate, capsys, tmp_path
):
    where = ("--restart-command", "true {flags}", "--url", f"https://127.0.0.1:{server.port}")
    tune = ["tune", *where, "--output-dir", str(tmp_path), "--no-report"]

    assert main([*tune, "--ca-file", certificate[1]]) == 1
    assert "answers already" in capsys.readouterr().err
    assert main(tune) == 1
    assert "name its CA with --ca-file, or give --insecure" in capsys.readouterr().err


@contextmanager
def answering(said: bytes) -> Iterator[int]:
    """Listen, and say this to whoever says anything; without a word, to nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # it was closed
                while True:
                    connection, _ = listener.accept()
                    kept.append(connection)
                    if said:
                        connection.recv(4_096)
                        connection.sendall(said)

        kept: list[socket.socket] = []
        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


def test_https_where_only_http_is_spoken_is_told(tmp_path, capsys):
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        where = ("--endpoint", f"mine=https://127.0.0.1:{port}", "--name", "x")
        assert main(["bench", "run", *where, "--output-dir", str(tmp_path), *LOAD]) == 1
        assert main(["status", "--url", f"https://127.0.0.1:{port}"]) == 1

    assert capsys.readouterr().err.count("it does not speak TLS there: take http://") == 2


def test_who_does_not_answer_a_handshake_is_not_waited_for(capsys, monkeypatch):
    monkeypatch.setattr(talking, "_CONNECT_S", 0.1)

    with answering(b"") as port:
        assert main(["status", "--url", f"https://127.0.0.1:{port}"]) == 1

    assert "timed out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), ("no certificate", "NO_CERTIFICATE_OR_CRL_FOUND")],
)
def test_a_file_without_a_certificate_is_named(bench, tmp_path, capsys, content, told):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)

    assert bench("--ca-file", str(path)) == 1

    said = capsys.readouterr().err
    assert f"--ca-file = '{path}': is not to be read" in said
    assert told in said


def test_both_at_once_mean_nothing(bench, certificate, capsys):
    assert bench("--insecure", "--ca-file", certificate[1]) == 1
    assert "--insecure = True" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("chat", "hello"),
        ("status",),
        ("planner", "explain"),
        ("router", "explain"),
        ("worker", "stats", "w", "--config", "FLEET"),
        ("profile", "OUT"),
    ],
)
def test_every_command_that_asks_a_server_can_be_told(words, server, certificate, tmp_path, capsys):
    (tmp_path / "FLEET").write_text("cluster: {token: the token of a tested cluster}\n")
    given = [str(tmp_path / word) if word.isupper() else word for word in words]
    command = [*given, "--url", f"https://127.0.0.1:{server.port}"]

    main(command)
    assert "certificate verify failed" in capsys.readouterr().err
    assert server.paths == []

    main([*command, "--ca-file", certificate[1]])
    assert "certificate" not in capsys.readouterr().err
    assert server.paths
