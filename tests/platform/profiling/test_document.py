"""Profiles as files: ours, the mocker's, broken ones and foreign ones."""

import json

import pytest

from stafette.platform.profiling.document import Document, load_profile, read_document
from stafette.platform.profiling.points import Point
from stafette.platform.twin.config import read
from stafette.workers.errors import EngineError
from stafette.workers.mocker.speed_profile import Profile

DECODE = Point(kind="decode", ms=10.0, batch=1, kv_tokens=100)


def told(**changed):
    return json.loads(Document(subject={"model": "m"}, points=(DECODE,)).to_json()) | changed


def test_the_mockers_own_format_is_a_profile_too(tmp_path):
    path = tmp_path / "speed.json"
    path.write_text(Profile(step_ms=3.0).to_json())

    assert load_profile(path) == Profile(step_ms=3.0)


def test_the_model_alone_is_what_a_mock_worker_reads(tmp_path):
    document = Document(subject={"model": "m"}, points=(DECODE,))
    path = tmp_path / "speed.json"
    path.write_text(document.model.to_json())

    assert Profile.read(path) == document.model


def test_what_no_point_tells_of_is_the_bases():
    document = Document(subject={}, points=(DECODE,), base=Profile(prefill_ms_per_token=7.0))

    assert document.model.prefill_ms_per_token == 7.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps({"format": "other"}), "is not a profile"),
        (json.dumps(told(version=3)), r"profile\.version = 3: must be 2 or older"),
        (json.dumps(told(points={})), "must be a list"),
        (json.dumps(told(points=[1])), "list of objects"),
        (json.dumps(told(points=[{"kind": "decode"}])), "must hold kind and ms"),
        (
            json.dumps(told(points=[{"kind": "idle", "ms": 1.0}])),
            "must be one of prefill, decode, transfer",
        ),
        (json.dumps(told(points=[{"kind": "decode", "ms": -1.0}])), "at least 0"),
        (json.dumps(told(points=[{"kind": "decode", "ms": 1.0, "x": 1}])), "no part of a point"),
        (json.dumps(told(limits={"max_seqs": 1})), "is unknown"),
        (json.dumps(told(limits={"kv_tokens": -1})), "at least 0"),
        (json.dumps(told(model={"step_m": 1.0})), "did you mean step_ms"),
        (json.dumps({"latency": 3}), r"version = None: must be 1"),
    ],
)
def test_a_broken_or_foreign_file_is_refused(tmp_path, content, message):
    path = tmp_path / "profile.json"
    path.write_text(content)

    with pytest.raises(EngineError, match=message):
        load_profile(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"nothing\.json.*cannot be read"):
        read_document(tmp_path / "nothing.json")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EngineError, match="cannot be written"):
        Document(subject={}).write(tmp_path / "no" / "profile.json")


def test_the_twin_runs_by_a_profile_of_ours(tmp_path):
    Document(subject={"model": "m"}, points=(DECODE,)).write(tmp_path / "profile.json")
    description = tmp_path / "twin.yaml"
    pools = {"both": {"profile": "profile.json"}}
    description.write_text(json.dumps({"workload": {"poisson": {}}, "pools": pools}))

    speed = read(description).pools["both"].speed

    assert speed == load_profile(tmp_path / "profile.json")
