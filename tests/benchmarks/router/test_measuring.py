"""Only right answers are timed."""

import types

import pytest

from benchmarks.router import measuring
from benchmarks.router.contenders import stafette
from benchmarks.router.workload import in_runs, populate, questions


class Forgetful(stafette.Index):
    """Fast, because it does not look."""

    def match(self, query):
        return {}


class Careless(stafette.Placement):
    """Always the same worker."""

    def place(self, prompts):
        return [(0, 1e-9) for _ in prompts]


def test_population_has_as_many_entries_as_were_asked_for():
    population = populate(workers=8, length=64, entries=20_000)

    assert population.entries == pytest.approx(20_000, rel=0.05)
    common = 8 * sum(map(len, population.beginnings))
    assert common == pytest.approx(10_000, rel=0.05)


def test_events_are_runs_whose_parent_is_the_block_before():
    runs = in_runs(3, 7, list(range(100, 230)), size=64)

    assert [len(run.blocks) for run in runs] == [64, 64, 2]
    assert [run.parent for run in runs] == [7, 163, 227]


def test_questions_know_their_answers():
    population = populate(workers=8, length=64, entries=20_000)

    kinds = {(question.deepest, question.holders) for question in questions(population, 200)}

    assert kinds == {(64, 8), (32, 8), (0, 0)}


def test_look_ups_and_events_are_measured():
    found = measuring.look_up(stafette, workers=4, length=64, entries=5_000, count=60)
    assert 0 < found["raw_us"] < found["match_us"] <= found["match_p99_us"]

    found = measuring.apply(stafette, workers=4, per_event=64, blocks=10_240)
    assert min(found.values()) > 0


def test_index_that_forgets_is_found_out():
    module = types.SimpleNamespace(Index=Forgetful)

    with pytest.raises(measuring.WrongAnswer):
        measuring.look_up(module, workers=4, length=64, entries=5_000, count=60)


def test_placements_are_measured():
    found = measuring.place(stafette, workers=4, tokens=256, entries=2_000, count=60)

    assert 0 < found["place_us"] <= found["place_p99_us"]


def test_router_that_always_says_the_same_is_found_out():
    module = types.SimpleNamespace(Placement=Careless)

    with pytest.raises(measuring.WrongAnswer, match="went where they are held"):
        measuring.place(module, workers=4, tokens=256, entries=2_000, count=60)
