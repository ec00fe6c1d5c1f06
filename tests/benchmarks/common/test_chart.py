"""A chart is a picture file, gaps and all."""

from benchmarks.common.chart import bars


def test_bars_writes_a_png_with_gaps_for_what_was_not_measured(tmp_path):
    path = tmp_path / "chart.png"

    bars(path, "speed", "tok/s", ["1", "16"], {"ours": [10.0, 100.0], "theirs": [5.0, None]})

    assert path.read_bytes().startswith(b"\x89PNG")
