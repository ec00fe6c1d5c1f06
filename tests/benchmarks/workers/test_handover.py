"""The benchmark's own parts: parameters travel as JSON, and what was read is told in a table."""

import json

from benchmarks.common.report import Report
from benchmarks.workers import handover, handover_engine
from stafette.kvtransfer.connectors.p2p.messages import Take


def test_parameters_travel_as_json_and_come_out_as_they_were():
    params = Take("h1", ("one",), 3, (b"\x00\xff", b"news")).params()

    carried = json.loads(json.dumps(handover_engine._pack(params)))

    assert handover_engine._unpack(carried) == params


def test_reads_are_told_by_their_median():
    report = Report("title")

    handover._add_reads(report, 512, {"shm": [(10_000_000, 0.1), (10_000_000, 0.01)] * 2})

    (table,) = report.tables
    assert table.rows == [["shm", 10.0, 55.0, 10_000_000 / 0.055 / 1e9]]


def test_the_same_prompt_is_asked_of_every_engine():
    one, other = (handover_engine._request(name, 40) for name in ("one", "other"))

    assert one.prompt_token_ids == other.prompt_token_ids
    assert one.request_id != other.request_id
