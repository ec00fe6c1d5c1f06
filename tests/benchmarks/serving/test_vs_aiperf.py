"""What a machine takes while it does something else is not held against a client."""

import pytest

from benchmarks.serving.vs_aiperf import FIGURES, _best


@pytest.mark.parametrize(
    ("figure", "rounds", "counts"),
    [
        ("requests/s", [12.0, 12.9, 12.5], 12.9),
        ("TTFT mean, ms", [340.0, 302.0, 310.0], 302.0),
        ("E2E p50, ms", [1238.0, 1303.0], 1238.0),
        ("TPOT mean, ms", [29.0, 30.0, 30.1], 30.0),  # after a late first token
        ("ITL mean, ms", [29.0, 30.0, 30.1], 30.0),
    ],
)
def test_a_figures_best_round_counts_and_of_gaps_the_middle_one(figure, rounds, counts):
    assert figure in FIGURES
    assert _best(figure, rounds) == counts


def test_a_figure_that_nobody_has_is_none():
    assert _best("requests/s", []) is None
