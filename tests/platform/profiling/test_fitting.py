"""The step model is found again from the times that it makes, and is never below 0."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.fitting import fit, predict_ms
from stafette.platform.profiling.points import FEATURES, Point

PREFILLS = [
    (steps, steps * new, cached) for steps in (1, 2) for new in (64, 512) for cached in (0, 512)
]
DECODES = [(batch, batch * context) for batch in (1, 4, 16) for context in (64, 1024)]
MOST = (20.0, 2.0, 1e-3, 2.0, 1e-2, 10.0, 5.0, 2.0)
TERMS = st.tuples(*(st.floats(most / 100, most) for most in MOST))


def points_of(terms, noise=lambda number: 1.0):
    drawn = [
        Point(kind="prefill", ms=1.0, steps=steps, prompt_tokens=new, cached_tokens=cached)
        for steps, new, cached in PREFILLS
    ]
    drawn += [Point(kind="decode", ms=1.0, batch=batch, kv_tokens=kv) for batch, kv in DECODES]
    drawn += [Point(kind="transfer", ms=1.0, nbytes=size) for size in (10_000, 1 << 20, 64 << 20)]
    named = dict(zip(FEATURES, terms, strict=True))
    return [
        Point(
            kind=point.kind,
            ms=predict_ms(named, point) * noise(number),
            steps=point.steps,
            prompt_tokens=point.prompt_tokens,
            cached_tokens=point.cached_tokens,
            batch=point.batch,
            kv_tokens=point.kv_tokens,
            nbytes=point.nbytes,
        )
        for number, point in enumerate(drawn)
    ]


@settings(max_examples=25, deadline=None)
@given(TERMS)
def test_exact_times_are_explained_exactly(terms):
    found = fit(points_of(terms))

    assert found.max_error < 1e-4


@settings(max_examples=25, deadline=None)
@given(TERMS, st.randoms(use_true_random=False))
def test_no_term_is_below_0_whatever_the_noise(terms, draw):
    found = fit(points_of(terms, lambda number: draw.uniform(0.5, 2.0)))

    assert min(found.terms.values()) >= 0


def test_the_error_is_that_of_the_model_against_what_was_measured():
    point = {"kind": "decode", "batch": 1, "kv_tokens": 100}

    found = fit([Point(ms=10.0, **point), Point(ms=20.0, **point)])

    # Relative squares are least at 12: (12 / 10 - 1)² + (12 / 20 - 1)² = 0.04 + 0.16
    assert found.errors == pytest.approx((0.2, -0.4))
    assert found.mean_error == pytest.approx(0.3)


def test_terms_that_no_point_tells_of_are_left_out():
    found = fit([Point(kind="decode", ms=10.0, batch=1, kv_tokens=100)])

    assert "prefill_ms_per_token" not in found.terms


def test_nothing_cannot_be_fitted():
    with pytest.raises(InvalidSetting, match="measure something first"):
        fit([])
