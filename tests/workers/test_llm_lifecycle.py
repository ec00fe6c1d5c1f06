"""An LLM's life: streams side by side, interrupts, failures, and the end."""

import gc
import signal
import threading
from collections.abc import Iterator

import pytest

from stafette.workers import LLM, SamplingParams, building
from stafette.workers.errors import ConfigError, EngineDead, RequestError

FLAGS = {"max_num_seqs": 4, "max_model_len": 256, "num_kv_blocks": 64}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = ["The capital of France is", "One, two, three,"]


@pytest.fixture
def own_llm() -> Iterator[LLM]:
    with LLM(**FLAGS) as llm:
        yield llm


def text(llm, prompt):
    return llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].text


def test_streams_read_in_turns_give_what_each_gives_alone(llm):
    alone = [text(llm, prompt) for prompt in PROMPTS]

    together = zip(*(llm.stream(prompt, GREEDY) for prompt in PROMPTS), strict=True)

    pieces = [[delta.text for delta in pair] for pair in together]
    assert ["".join(column) for column in zip(*pieces, strict=True)] == alone


def test_generating_between_two_pieces_of_a_stream_disturbs_neither(llm):
    alone = [text(llm, prompt) for prompt in PROMPTS]
    stream = llm.stream(PROMPTS[0], GREEDY)
    beginning = next(stream).text

    between = text(llm, PROMPTS[1])

    assert between == alone[1]
    assert beginning + "".join(delta.text for delta in stream) == alone[0]


def interrupt_at(llm, step, monkeypatch):
    """Let the main thread be interrupted while the device computes this step."""
    forward, calls = llm.engine.executor.runner.forward, iter(range(1000))

    def interrupting(inputs):
        if next(calls) == step:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return forward(inputs)

    monkeypatch.setattr(llm.engine.executor.runner, "forward", interrupting)


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_after_an_interrupt_the_engine_answers_as_before(llm, monkeypatch, async_scheduling):
    with LLM(**FLAGS, async_scheduling=async_scheduling) as own:
        interrupt_at(own, 3, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            own.generate(PROMPTS, GREEDY, use_tqdm=False)

        assert [text(own, prompt) for prompt in PROMPTS] == [text(llm, p) for p in PROMPTS]
        assert own.engine.stats().scheduler.num_blocks_used == 0


def test_a_closed_engine_says_so_and_may_be_closed_again(own_llm):
    own_llm.close()

    with pytest.raises(EngineDead, match="closed"):
        text(own_llm, PROMPTS[0])
    with pytest.raises(EngineDead, match="closed"):
        own_llm.logits([1, 2, 3])
    own_llm.close()


def test_a_stream_left_open_ends_when_the_engine_is_closed(own_llm):
    stream = own_llm.stream(PROMPTS[0], GREEDY)
    next(stream)

    own_llm.close()

    with pytest.raises(EngineDead, match="closed"):
        list(stream)


def test_after_a_failed_step_the_reason_is_given_to_every_caller(own_llm, monkeypatch):
    def broken(inputs):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(own_llm.engine.executor.runner, "forward", broken)

    for _ in range(2):
        with pytest.raises(EngineDead, match="the device is gone"):
            text(own_llm, PROMPTS[0])


def test_a_forgotten_engine_closes_itself():
    llm = LLM(**FLAGS)
    engine = llm.engine

    del llm
    gc.collect()

    with pytest.raises(EngineDead, match="closed"):
        engine.step()


def test_a_start_that_fails_frees_what_it_took(monkeypatch):
    closed = []
    make = building.make_runner

    def make_and_watch(*arguments):
        runner = make(*arguments)
        close = runner.close
        monkeypatch.setattr(runner, "close", lambda: (closed.append(runner), close()))
        return runner

    monkeypatch.setattr(building, "make_runner", make_and_watch)

    with pytest.raises(ConfigError, match="num_kv_blocks"):
        LLM(**{**FLAGS, "num_kv_blocks": 1})
    assert len(closed) == 1


@pytest.mark.parametrize("prompt", [[1, 2.5], [1, "two"], [2**70], None])
def test_a_prompt_that_is_no_text_and_no_tokens_is_refused(llm, prompt):
    with pytest.raises(RequestError, match="prompt"):
        llm.generate([prompt], GREEDY, use_tqdm=False)


def test_a_flag_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean max_num_seqs") as caught:
        LLM(max_num_seq=4)

    assert caught.value.field == "max_num_seq"
