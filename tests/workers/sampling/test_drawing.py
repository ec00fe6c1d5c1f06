"""Drawing against its definition: sort the whole vocabulary, keep what the rules keep."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.workers.sampling.device_logits import DeviceLogits
from stafette.workers.sampling.drawing import BAD_ROW, Rules, argmax, draw
from stafette.workers.sampling.host_logits import HostLogits
from stafette.workers.sampling.logits import Logits, blocks_of

VOCAB = 3000
BLOCKS = blocks_of(VOCAB)[1]

Wrap = Callable[[torch.Tensor], Logits]
both_devices = pytest.mark.parametrize(
    "wrap", [lambda logits: HostLogits(logits.numpy()), DeviceLogits], ids=["numpy", "torch"]
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch from waiting for a second core, which these small tensors are not worth."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rules_of(rows: int, **changed: object) -> Rules:
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": 0.5}
    dtypes = {"temperature": np.float32, "top_k": np.int64}
    values = plain | changed
    return Rules(
        **{
            name: np.broadcast_to(np.asarray(value, dtypes.get(name, np.float64)), rows).copy()
            for name, value in values.items()
        }
    )


def naive_kept(logits: np.ndarray, temperature: float, rules: dict[str, float]) -> np.ndarray:
    """Return the kept tokens in order: most likely first, the lower id first among equals."""
    scaled = (logits / np.float32(temperature)).astype(np.float64)
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order] - scaled[order[0]])
    kept = int((weights >= rules["min_p"]).sum())
    if rules["top_k"]:
        kept = min(kept, int(rules["top_k"]))
    if rules["top_p"] < 1:
        ends = np.cumsum(weights[:kept])
        kept = min(kept, int((ends < rules["top_p"] * ends[-1]).sum()) + 1)
    return order[:kept]


def make_logits(seed: int, spread: float, coarse: bool) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32) * np.float32(spread)
    return np.round(values) if coarse else values


@both_devices
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]),
    coarse=st.booleans(),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 64, 65, 500, VOCAB, 10_000]),
    top_p=st.sampled_from([0.001, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 1.0]),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_drawn_token_is_where_the_random_number_falls_among_the_kept(
    wrap: Wrap,
    seed: int,
    spread: float,
    coarse: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> None:
    logits = make_logits(seed, spread, coarse)
    chosen = {"top_k": top_k, "top_p": top_p, "min_p": min_p}

    token = draw(
        wrap(torch.from_numpy(logits[None])),
        rules_of(1, temperature=temperature, uniform=uniform, **chosen),
    )[0]

    kept = naive_kept(logits, temperature, chosen)
    if top_k == 0 and min_p == 0 and top_p == 1:
        kept = np.concatenate([np.arange(start, VOCAB, BLOCKS) for start in range(BLOCKS)])
    scaled = (logits / np.float32(temperature)).astype(np.float64)
    weights = np.exp(scaled[kept] - scaled.max())
    ends = np.cumsum(weights) / weights.sum()
    at = int(np.flatnonzero(kept == token)[0])
    start = ends[at - 1] if at else 0.0
    assert start - 1e-5 <= uniform <= ends[at] + 1e-5
    assert weights[at] > 0


@pytest.mark.parametrize(
    "chosen",
    [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.02}, {"top_k": 100, "top_p": 0.8}],
    ids=str,
)
@both_devices
def test_evenly_spread_random_numbers_give_the_distribution_itself(
    wrap: Wrap,
    chosen: dict[str, float],
) -> None:
    logits = make_logits(7, 2.0, coarse=False)
    draws = 10_000
    uniform = (np.arange(draws) + 0.5) / draws
    counts = np.zeros(VOCAB)
    rules = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | chosen

    for part in np.split(uniform, 50):
        rows = torch.from_numpy(logits).repeat(len(part), 1)
        np.add.at(counts, draw(wrap(rows), rules_of(len(part), uniform=part, **chosen)), 1)

    kept = naive_kept(logits, 1.0, rules)
    weights = np.exp(logits[kept].astype(np.float64))
    expected = np.zeros(VOCAB)
    expected[kept] = weights / weights.sum() * draws
    assert np.abs(counts - expected).max() <= 1.01


@pytest.mark.parametrize("chosen", [{}, {"top_p": 0.95}, {"top_k": 30}, {"min_p": 0.1}], ids=str)
@both_devices
def test_row_does_not_feel_its_companions(wrap: Wrap, chosen: dict[str, float]) -> None:
    rows = torch.from_numpy(np.stack([make_logits(i, 3.0, coarse=False) for i in range(17)]))
    uniform = np.random.default_rng(0).random(17)

    together = draw(wrap(rows), rules_of(17, uniform=uniform, **chosen))

    alone = [
        draw(wrap(rows[i : i + 1]), rules_of(1, uniform=uniform[i], **chosen))[0] for i in range(17)
    ]
    assert together.tolist() == alone


@both_devices
def test_rows_with_different_rules_share_a_batch(wrap: Wrap) -> None:
    rows = torch.from_numpy(np.stack([make_logits(i, 3.0, coarse=False) for i in range(4)]))
    mixed = rules_of(
        4,
        top_k=[0, 3, 0, 0],
        top_p=[1, 1, 0.7, 1],
        min_p=[0, 0, 0, 0.1],
        uniform=[0.1, 0.9, 0.4, 0.6],
    )

    together = draw(wrap(rows), mixed)

    alone = [draw(wrap(rows[i : i + 1]), mixed.rows(np.array([i])))[0] for i in range(4)]
    assert together.tolist() == alone


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("chosen", [{}, {"top_p": 0.9}], ids=str)
@both_devices
def test_broken_row_is_reported_and_leaves_the_others_alone(
    wrap: Wrap, bad: float, chosen: dict[str, float]
) -> None:
    rows = torch.from_numpy(np.stack([make_logits(i, 3.0, coarse=False) for i in range(3)]))
    broken = rows.clone()
    broken[1, 123] = bad

    tokens = draw(wrap(broken), rules_of(3, **chosen))

    good = draw(wrap(rows), rules_of(3, **chosen))
    assert tokens.tolist() == [good[0], BAD_ROW, good[2]]
    assert argmax(wrap(broken)).tolist() == [int(rows[0].argmax()), BAD_ROW, int(rows[2].argmax())]


@both_devices
def test_row_without_any_token_left_is_a_broken_row(wrap: Wrap) -> None:
    nothing = torch.full((1, VOCAB), -torch.inf)

    assert draw(wrap(nothing), rules_of(1)).tolist() == [BAD_ROW]
    assert argmax(wrap(nothing)).tolist() == [BAD_ROW]


@both_devices
def test_forbidden_tokens_are_never_drawn(wrap: Wrap) -> None:
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, [5, 2999]] = 1.0

    for uniform in (0.0, 0.49, 0.51, 1 - 2**-53):
        for chosen in ({}, {"top_p": 0.999}, {"top_k": 50}):
            token = draw(wrap(logits), rules_of(1, uniform=uniform, **chosen))[0]
            assert token == (5 if uniform < 0.5 else 2999)
