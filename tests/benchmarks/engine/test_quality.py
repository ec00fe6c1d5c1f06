"""The loss in perplexity is that of the exponentials, and the text is long enough to tell."""

import math

import pytest

from benchmarks.engine.quality import TEXT, Quality
from stafette.workers.weights.opening import open_tokenizer


@pytest.mark.parametrize(
    ("nll", "percent"), [(3.0, 0.0), (3.0 + math.log(1.01), 1.0), (3.0 + math.log(0.98), -2.0)]
)
def test_perplexity_is_compared_in_percent(nll, percent):
    quality = Quality(nll, 3.0, 0.96, 2000)

    assert quality.perplexity_loss_percent == pytest.approx(percent)


def test_the_text_has_two_to_four_thousand_tokens():
    tokens = open_tokenizer("smollm2").encode(TEXT.read_text())

    assert 2000 <= len(tokens) <= 4000
