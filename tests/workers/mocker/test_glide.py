"""Many decoding steps at once: all that is told is what single steps would have told."""

import random
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.connectors.p2p.messages import Give, Take
from stafette.workers import SamplingParams
from stafette.workers.mocker.config import DEFAULT_FLAGS, MockerConfig
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.virtual import VirtualCluster, VirtualTime
from stafette.workers.request import Request

MAX_LEN = 80
ENGINES = st.builds(
    lambda **flags: replace(DEFAULT_FLAGS, max_model_len=MAX_LEN, **flags),
    block_size=st.sampled_from([2, 4, 16]),
    num_kv_blocks=st.sampled_from([40, 80, 400]),  # so few that sequences are preempted, or plenty
    max_num_seqs=st.sampled_from([2, 4, 8]),
    max_num_batched_tokens=st.sampled_from([16, 64, 512]),
    async_scheduling=st.booleans(),
)


@dataclass
class Asked:
    """What happens to the workers, and when."""

    at: float
    request: Request
    worker: str
    source: str | None  # who computes the prompt for it
    aborted_at: float | None


@dataclass
class Told:
    """All that was heard of one run."""

    tokens: dict = field(default_factory=dict)
    events: list = field(default_factory=list)
    looks: list = field(default_factory=list)
    steps_at_once: int = 0


def plan(rng: random.Random) -> list[Asked]:
    stems = [[rng.randrange(5, 90) for _ in range(40)] for _ in range(2)]
    found = []
    for number in range(rng.randrange(1, 12)):
        stem = rng.choice(stems)[: rng.randrange(1, 40)]
        prompt = stem + [rng.randrange(5, 90) for _ in range(rng.randrange(0, 20))]
        params = SamplingParams(
            max_tokens=rng.randrange(1, 60),
            ignore_eos=rng.random() < 0.5,
            stop_token_ids=(7,) if rng.random() < 0.1 else (),
        )
        request = Request(request_id=str(number), prompt_token_ids=prompt, params=params)
        at = rng.random() * rng.choice([0.05, 0.6])
        worker = rng.choice(["a", "b"])
        source = rng.choice([None, "b" if worker == "a" else "a"])
        aborted_at = at + rng.random() * 0.3 if rng.random() < 0.2 else None
        found.append(Asked(at, request, worker, source, aborted_at))
    return found


def run(engine, mean_output_tokens, seed, at_once: bool) -> Told:
    rng, told = random.Random(seed), Told()
    time = VirtualTime()
    cluster = VirtualCluster(time)

    def hear(name, token_ids, when, reason=None) -> None:
        told.tokens.setdefault(name, []).append((tuple(token_ids), when, reason))

    def on_deltas(deltas) -> None:
        for delta in deltas:
            hear(delta.request_id, delta.token_ids, time.now, delta.finish_reason)

    def on_stretch(stretch) -> None:
        told.steps_at_once += len(stretch.ends_s)
        for name, token_ids in zip(stretch.request_ids, stretch.token_ids, strict=True):
            for token, when in zip(token_ids, stretch.ends_s.tolist(), strict=True):
                hear(name, [token], when)

    for name in ("a", "b"):
        config = MockerConfig(
            name=name,
            engine=engine,
            profile=Profile(step_ms=rng.choice([1.0, 6.0])),
            mean_output_tokens=mean_output_tokens,
        )
        worker = cluster.add(config, on_deltas, on_stretch if at_once else None)
        worker.on_kv_events = lambda batch: told.events.append(batch)
    for asked in plan(rng):
        ask(cluster, time, asked)
    for _ in range(6):
        look_at = rng.random()
        time.at(look_at, lambda: told.looks.append([w.stats() for w in cluster.workers.values()]))
    slow_at = rng.random()
    time.at(slow_at, lambda: cluster.workers["a"].set_pace(2.0))
    time.run()

    for worker in cluster.workers.values():
        told.looks.append([worker.stats(), worker.connector.counters, worker.pool.cached_hashes])
        assert worker.pool.num_held == 0
    told.events.sort(key=lambda batch: (batch.worker_id, batch.seq))
    return told


def ask(cluster, time, asked: Asked) -> None:
    worker, request = cluster.workers[asked.worker], asked.request
    if asked.source is None:
        time.at(asked.at, lambda: worker.generate(request))
    else:
        source, name = cluster.workers[asked.source], request.request_id
        first = replace(request, request_id=f"{name}-p", params=SamplingParams(max_tokens=1))
        give, take = Give(name, (asked.worker,)).params(), Take(name, (asked.source,)).params()
        time.at(asked.at, lambda: worker.generate(request, take))
        time.at(asked.at, lambda: source.prefill(first, give, lambda exported: None))
    if asked.aborted_at is not None:
        time.at(asked.aborted_at, lambda: worker.abort(request.request_id))


@settings(max_examples=60, deadline=None)
@given(engine=ENGINES, mean=st.sampled_from([0.0, 15.0]), seed=st.integers(0, 1 << 32))
def test_tokens_times_events_and_books_are_those_of_single_steps(engine, mean, seed):
    single = run(engine, mean, seed, at_once=False)
    at_once = run(engine, mean, seed, at_once=True)

    assert at_once.tokens == single.tokens
    assert at_once.looks == single.looks
    assert at_once.events == single.events


def test_most_steps_of_long_answers_are_made_at_once(stage):
    heard = []
    config = MockerConfig(name="w")
    worker = stage.cluster.add(config, lambda deltas: None, heard.append)
    for number in range(4):
        worker.generate(stage.request(str(number), prompt=[number + 5] * 40, max_tokens=500))

    stage.time.run()

    assert sum(len(stretch.ends_s) for stretch in heard) > 490
    assert worker.stats().num_steps == 500


def test_who_looks_sees_all_steps_until_now(stage):
    config = MockerConfig(name="w", engine=replace(DEFAULT_FLAGS, async_scheduling=False))
    heard = []
    worker = stage.cluster.add(config, lambda deltas: None, heard.append)
    worker.generate(stage.request(prompt=16, max_tokens=1_000))

    stage.time.run(until=2.0)
    worker.settle()

    ends = [end for stretch in heard for end in stretch.ends_s.tolist()]
    assert ends == sorted(ends)
    assert 2.0 - 0.01 < ends[-1] < 2.0
