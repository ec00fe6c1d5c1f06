"""Contenders get the same prompts and answer in lines of JSON."""

import io
import json
import sys

import pytest

from benchmarks.engine.contenders.protocol import Answer, Case, serve

QUESTION = {"sequences": 2, "prompt_tokens": 3, "output_tokens": 4}


@pytest.fixture
def ask(monkeypatch):
    def run(answer) -> dict:
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(QUESTION) + "\n"))
        channel = io.StringIO()
        serve(answer, channel)
        return json.loads(channel.getvalue())

    return run


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others():
    assert Case(2, 5, 1, seed=3).prompts() == Case(2, 5, 1, seed=3).prompts()
    assert Case(2, 5, 1, seed=3).prompts() != Case(2, 5, 1, seed=4).prompts()
    assert [len(prompt) for prompt in Case(2, 5, 1).prompts()] == [5, 5]


def test_tokens_of_prompts_and_answers_are_counted_together():
    assert Case(16, 128, 64).total_tokens == 3072


def test_a_run_is_answered_with_its_seconds(ask):
    assert ask(lambda case: Answer(1.5, 8, 0.1)) == {"seconds": 1.5, "ttft_s": 0.1, "start_s": None}


def test_a_run_that_stopped_early_is_an_error(ask):
    assert ask(lambda case: Answer(1.5, 7)) == {"error": "7 output tokens instead of 8"}


def test_a_failed_run_is_answered_with_its_error(ask):
    def fail(case: Case) -> Answer:
        raise MemoryError("no room")

    assert ask(fail) == {"error": "MemoryError: no room"}
