"""A mock worker beside the real engine: the same arrivals, the same blocks, the same events."""

import random

import pytest

from stafette.kvtransfer.event_log import EventLog
from stafette.workers import SamplingParams
from stafette.workers.building import build_engine
from stafette.workers.config import EngineConfig
from stafette.workers.handover.handover import kv_request
from stafette.workers.handover.imports import Imports
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.core import Mocker
from stafette.workers.request import Request

FLAGS = {
    "tokenizer": "smollm2",  # the toy has none; its prompts are tokens
    "max_model_len": 256,
    "num_kv_blocks": 20,  # so few that sequences are preempted and prefixes evicted
    "max_num_seqs": 6,
    "num_threads": 1,
}
REQUESTS = 28
VOCABULARY = 97  # of the toy


def arrivals(seed):
    """Return (step, request): prompts of which many begin alike."""
    rng = random.Random(seed)
    stems = [[rng.randrange(5, VOCABULARY) for _ in range(96)] for _ in range(3)]
    found = []
    for number in range(REQUESTS):
        stem = rng.choice(stems)[: rng.randrange(16, 96)]
        prompt = stem + [rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(1, 40))]
        limit = rng.randrange(1, 60)
        params = SamplingParams(max_tokens=limit, temperature=0.0, ignore_eos=number % 2 == 0)
        request = Request(
            request_id=str(number), prompt_token_ids=prompt, params=params, detokenize=False
        )
        found.append((rng.randrange(0, 80), request))
    return sorted(found, key=lambda each: each[0])


class Told:
    """What was heard of one run."""

    def __init__(self) -> None:
        self.batches = []
        self.deltas = []
        self.books = []

    def hear(self, deltas, stats) -> None:
        self.deltas += [
            (d.request_id, tuple(d.token_ids), d.finish_reason, d.num_cached_tokens) for d in deltas
        ]
        self.books.append(stats.scheduler)

    def tokens(self):
        found = {}
        for name, tokens, _, _ in self.deltas:
            found.setdefault(name, []).extend(tokens)
        return found


def run_engine(config, coming):
    """Serve as a worker does: what is cached of a prompt stays until the prompt is admitted."""
    engine, told = build_engine(config), Told()
    mocker = Mocker(MockerConfig(name="books", engine=config), lambda: 0.0, EventLog("books", 1))
    imports = Imports(engine, mocker.connector, lambda call: call())  # it has nothing to bring
    wanted = {}
    engine.after_step = imports.after_step
    engine.on_kv_events = lambda batch: told.batches.append(batch.events)
    steps, left = 0, list(coming)
    try:
        while left or engine.has_work:
            while left and (left[0][0] <= steps or not engine.has_work):
                _, request = left.pop(0)
                wanted[request.request_id] = kv_request(engine, request, {})
                imports.begin(wanted[request.request_id], lambda pulled, r=request: engine.add(r))
            deltas = engine.step()
            for delta in deltas:
                if delta.finish_reason is not None:
                    imports.end(wanted[delta.request_id])
            steps += 1
            told.hear(deltas, engine.stats())
    finally:
        engine.close()
    return told


def run_mocker(config, coming, answers):
    """The same; its tokens are those that the engine has answered."""
    mocker, told = (
        Mocker(MockerConfig(name="mock", engine=config), lambda: 0.0, EventLog("mock", 1)),
        Told(),
    )
    prompts = {request.request_id: len(request.prompt_token_ids) for _, request in coming}

    def token(seq_id, length):
        name = mocker._by_seq[seq_id].request.request_id
        return answers[name][min(length - prompts[name], len(answers[name]) - 1)]

    mocker._device.token = token
    mocker.on_kv_events = lambda batch: told.batches.append(batch.events)
    steps, left = 0, list(coming)
    while left or mocker.has_work:
        while left and (left[0][0] <= steps or not mocker.has_work):
            mocker.generate(left.pop(0)[1])
        before, deltas = mocker.stats().num_steps, []
        while mocker.stats().num_steps == before and mocker.has_work:
            deltas = mocker.step(mocker.next_step_at())
        steps += 1
        told.hear(deltas, mocker.stats())
    return told


@pytest.fixture
def model(toys, tmp_path):
    toys.hf("llama").save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("seed", "flags"),
    [
        (1, {"async_scheduling": False}),
        (2, {"async_scheduling": True}),
        (3, {"async_scheduling": True, "max_num_batched_tokens": 32}),
        (4, {"async_scheduling": False, "enable_chunked_prefill": False}),
    ],
)
def test_books_events_and_hits_are_those_of_the_engine(model, seed, flags):
    config = EngineConfig(model=model, **(FLAGS | flags))
    coming = arrivals(seed)

    real = run_engine(config, coming)
    mock = run_mocker(config, coming, real.tokens())

    assert mock.deltas == real.deltas
    assert mock.batches == real.batches
    assert mock.books == real.books
    assert real.books[-1].num_preemptions > 0
    assert real.books[-1].prefix_hits > 0
