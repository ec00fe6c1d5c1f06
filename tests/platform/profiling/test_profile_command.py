"""`stafette profile`, as a user runs it, on the embedded model."""

import json

import pytest

from stafette.platform import cli
from stafette.platform.profiling.document import load_profile, read_document
from stafette.workers.mocker.speed_profile import Profile

SMALL = ["--max-model-len", "256", "--num-kv-blocks", "64", "--samples", "1"]
PLAN = ["--prompts", "32", "64", "--shares", "0", "0.5", "--batches", "1", "2", "--contexts", "16"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "mine.json"
    status = cli.main(["profile", str(path), *SMALL, *PLAN, "--mocker", f"{path.parent}/mock.json"])
    assert status == 0
    return path


def test_an_engine_is_measured(profile):
    found = read_document(profile)

    assert [point.name for point in found.points] == [
        "prefill 32 after 0",
        "prefill 16 after 16",
        "prefill 64 after 0",
        "prefill 32 after 32",
        "decode 2 x 16",
        "decode 1 x 16",
        *(f"transfer {size} MB by shm" for size in ("0.369", "1.47", "5.9", "23.6")),
    ]
    assert all(point.low_ms <= point.ms <= point.high_ms for point in found.points)
    # SmolLM2: 30 layers, 3 KV heads of 64, keys and values of 2 bytes
    assert found.model.kv_bytes_per_token == 30 * 3 * 64 * 2 * 2
    assert found.limits.kv_tokens == 64 * 16


def test_what_a_hand_over_takes_is_measured_and_in_the_model(profile):
    found = read_document(profile)

    per_mb = found.fit.terms["transfer_ms_per_mb"]
    assert found.model.transfer_gb_s == pytest.approx(1 / per_mb)
    assert found.model.transfer_latency_ms == found.fit.terms["transfer_latency_ms"]


def test_another_way_needs_another_file(profile, capsys):
    assert cli.main(["profile", str(profile), *SMALL, *PLAN, "--transfer", "tcp"]) == 1

    assert "the file has shm: name another file" in capsys.readouterr().err


def test_a_mock_worker_reads_the_model(profile):
    assert Profile.read(profile.with_name("mock.json")) == load_profile(profile)


def test_the_fits_error_of_every_point_is_kept(profile):
    told = json.loads(profile.read_text())

    assert len(told["errors"]) == len(told["points"])


def test_the_charts_are_drawn(profile):
    for name in ("mine-ttft.png", "mine-itl.png"):
        assert profile.with_name(name).read_bytes().startswith(b"\x89PNG")


def test_a_second_run_measures_nothing_and_prints_the_same(profile, capsys):
    before = profile.read_text()

    assert cli.main(["profile", str(profile), *SMALL, *PLAN, "--no-charts"]) == 0

    assert profile.read_text() == before
    assert "the model is off by" in capsys.readouterr().out


def test_other_flags_need_another_file(profile, capsys):
    other = ["--max-num-seqs", "4", "--max-model-len", "256", "--num-kv-blocks", "64"]

    assert cli.main(["profile", str(profile), *other, *PLAN]) == 1

    assert "name another file" in capsys.readouterr().err


def test_no_samples_are_refused(tmp_path, capsys):
    assert cli.main(["profile", str(tmp_path / "p.json"), "--samples", "0"]) == 1

    assert "--samples = 0: must be at least 1" in capsys.readouterr().err
