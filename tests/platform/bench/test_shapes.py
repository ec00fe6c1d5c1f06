"""What comes, and when."""

import json
from itertools import islice, pairwise
from statistics import mean, stdev

import pytest

from stafette.platform.bench.load import Lengths
from stafette.platform.bench.shapes.concurrency import ConcurrencyShape
from stafette.platform.bench.shapes.drawing import gaps
from stafette.platform.bench.shapes.prefixes import PrefixShape
from stafette.platform.bench.shapes.rate import RateShape
from stafette.platform.bench.shapes.sessions import SessionsShape
from stafette.platform.bench.shapes.traces import TraceShape
from stafette.platform.frontend.errors import InvalidSetting

LENGTHS = Lengths(isl=100, std=5, osl=8)
MOONCAKE = [
    {"timestamp": 1000, "input_length": 700, "output_length": 30, "hash_ids": [0, 1]},
    {"timestamp": 3000, "input_length": 1200, "output_length": 60, "hash_ids": [0, 1, 2]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.6805900,396,109
"""


def conversations(shape, requests=None, lengths=LENGTHS, seed=1):
    (level,) = shape.levels(lengths, requests, seed)
    return level, list(level.conversations())


def prompt_tokens(conversation, turn=0):
    return sum(piece.tokens for piece in conversation.turns[turn].pieces)


def test_a_concurrency_level_has_three_rounds_and_its_folder_is_dynamos():
    levels = ConcurrencyShape(concurrencies=(1, 50)).levels(LENGTHS, None, 1)

    assert [(each.name, each.limit, each.num_requests) for each in levels] == [
        ("c1", 1, 10),
        ("c50", 50, 150),
    ]


def test_lengths_vary_as_told_and_prompts_share_nothing():
    _, found = conversations(ConcurrencyShape(concurrencies=(1,)), requests=400)

    lengths = [prompt_tokens(each) for each in found]
    numbers = {each.turns[0].pieces[0].number for each in found}
    assert mean(lengths) == pytest.approx(100, abs=1)
    assert stdev(lengths) == pytest.approx(5, rel=0.2)
    assert len(numbers) == 400


def test_the_same_seed_brings_the_same_load():
    shape = RateShape(rates=(5.0,))

    assert conversations(shape, 20)[1] == conversations(shape, 20)[1]
    assert conversations(shape, 20)[1] != conversations(shape, 20, seed=2)[1]


@pytest.mark.parametrize(
    ("arrivals", "burstiness", "spread"),
    [("constant", 1.0, 0.0), ("poisson", 1.0, 1.0), ("gamma", 4.0, 0.5), ("gamma", 0.25, 2.0)],
)
def test_arrivals_keep_the_rate_and_spread_as_their_law_says(arrivals, burstiness, spread):
    between = list(islice(gaps(20.0, arrivals, burstiness, "seed"), 20_000))

    assert mean(between) == pytest.approx(1 / 20, rel=0.06)
    assert stdev(between) * 20 == pytest.approx(spread, rel=0.06)


def test_requests_of_a_rate_come_one_behind_the_other_from_the_beginning():
    _, found = conversations(RateShape(rates=(10.0,), arrivals="constant"), requests=5)

    assert [each.due_s for each in found] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_session_begins_with_a_prompt_and_adds_to_it():
    shape = SessionsShape(sessions=(2,), turns=3, turn_tokens=20)
    level, found = conversations(shape)

    assert level.num_requests == 3 * len(found)
    assert len(found) == 4
    for each in found:
        assert prompt_tokens(each) == pytest.approx(100, abs=30)
        assert prompt_tokens(each, turn=2) == pytest.approx(20, abs=25)


def test_a_share_of_each_prompt_is_one_of_few_beginnings():
    shape = PrefixShape(ratios=(0.75,), prefixes=3, concurrency=10)
    _, found = conversations(shape)

    beginnings = {each.turns[0].pieces[0] for each in found}
    assert {each.tokens for each in beginnings} == {75}
    assert len(beginnings) == 3
    assert len({each.turns[0].pieces[1].number for each in found}) == len(found)


def test_mooncakes_blocks_become_shared_beginnings(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, MOONCAKE)))

    _, (first, second) = conversations(TraceShape(file=str(path), speedups=(2.0,)))

    assert [first.due_s, second.due_s] == [0.0, 1.0]  # 2 s, twice as fast
    assert prompt_tokens(first) == 700
    assert [each.number for each in second.turns[0].pieces] == [0, 1, 2]
    assert second.turns[0].output_tokens == 60


def test_azures_lengths_and_times_are_kept(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)

    _, (first, second) = conversations(TraceShape(file=str(path), max_osl=50))

    assert (prompt_tokens(first), prompt_tokens(second)) == (374, 396)
    assert second.due_s - first.due_s == pytest.approx(4.0)
    assert (first.turns[0].output_tokens, second.turns[0].output_tokens) == (44, 50)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A,B\n1,2\n", "lacks the column TIMESTAMP"),
        (AZURE + "today,1,2\n", "trace.csv:4"),
        (AZURE.splitlines()[0] + "\n", "holds no request"),
    ],
)
def test_a_broken_trace_is_named_with_its_line(tmp_path, text, told):
    path = tmp_path / "trace.csv"
    path.write_text(text)

    with pytest.raises(InvalidSetting, match=told):
        TraceShape(file=str(path)).levels(LENGTHS, None, 1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Lengths(isl=10, std=10), "--std = 10"),
        (lambda: Lengths(osl=0), "--osl = 0"),
        (lambda: ConcurrencyShape(concurrencies=(0,)), "--concurrencies = 0"),
        (lambda: ConcurrencyShape(concurrencies=(2, 2)), "twice"),
        (lambda: RateShape(rates=(float("nan"),)), "--rates = nan"),
        (lambda: PrefixShape(ratios=(1.0,)), "--prefix-ratios = 1.0"),
        (lambda: SessionsShape(sessions=(1,), turns=0), "--turns = 0"),
        (lambda: TraceShape(file="x.csv", speedups=(0,)), "--speedup = 0"),
        (lambda: conversations(ConcurrencyShape(concurrencies=(8,)), requests=4), "--requests = 4"),
        (lambda: conversations(SessionsShape(sessions=(8,)), requests=9), "--requests = 9"),
        (lambda: conversations(TraceShape(file="/no/such.csv")), "/no/such.csv"),
    ],
)
def test_what_contradicts_itself_is_named(make, told):
    with pytest.raises(InvalidSetting, match=told):
        make()


def test_poisson_times_never_turn_back():
    _, found = conversations(RateShape(rates=(100.0,)), requests=200)

    assert all(a.due_s <= b.due_s for a, b in pairwise(found))
