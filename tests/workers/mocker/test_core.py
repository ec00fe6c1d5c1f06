"""A mock worker on a virtual clock: when it answers what, and whose blocks are where."""

import pytest

from stafette.workers.errors import ConfigError, RequestError
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.speed_profile import Profile

BLOCK = 16


def test_a_prompt_takes_its_tokens_time_and_each_token_after_it_a_step(stage):
    worker = stage.worker()

    worker.generate(stage.request(prompt=100, max_tokens=3))
    stage.time.run()

    assert stage.times() == pytest.approx([2.0, 3.0, 4.0])  # 1 s + 100 × 10 ms; 1 s; 1 s
    assert stage.end() == "length"


def test_who_comes_while_a_batch_runs_is_in_the_next_one(stage):
    worker = stage.worker()
    worker.generate(stage.request("first", prompt=100, max_tokens=3))

    stage.time.at(0.5, lambda: worker.generate(stage.request("second", prompt=[9] * 50)))
    stage.time.run(until=3.6)

    assert stage.times("first")[:2] == pytest.approx([2.0, 3.5])
    assert stage.times("second") == pytest.approx([3.5])


def test_with_async_scheduling_the_batch_behind_the_running_one_is_closed_as_in_an_engine(stage):
    worker = stage.worker(async_scheduling=True)
    worker.generate(stage.request("first", prompt=100, max_tokens=4))

    stage.time.at(0.5, lambda: worker.generate(stage.request("second", prompt=[9] * 50)))
    stage.time.run()

    assert stage.times("first") == pytest.approx([2.0, 3.0, 4.5, 5.5])
    assert stage.times("second")[0] == pytest.approx(4.5)


def test_a_common_beginning_is_computed_once(stage):
    worker = stage.worker()
    worker.generate(stage.request("a", prompt=100, max_tokens=1))
    stage.time.run()

    worker.generate(stage.request("b", prompt=100, max_tokens=1))
    stage.time.run()

    cached = [delta.num_cached_tokens for _, delta in stage.deltas]
    assert cached == [0, 6 * BLOCK]
    assert stage.times("b")[0] - stage.times("a")[0] == pytest.approx(1.04)  # 4 tokens are left


def test_a_token_depends_on_prompt_seed_and_place_only(stage):
    for name in ("alone", "crowded"):
        stage.worker(name)
    crowded = stage.cluster.workers["crowded"]
    stage.cluster.workers["alone"].generate(stage.request("a", max_tokens=20))
    for number in range(5):
        crowded.generate(stage.request(str(number), prompt=[number + 3] * 40))
    crowded.generate(stage.request("b", max_tokens=20))
    crowded.generate(stage.request("other seed", max_tokens=20, seed=7))
    stage.time.run()

    assert stage.tokens("a") == stage.tokens("b")
    assert stage.tokens("a") != stage.tokens("other seed")
    assert len(set(stage.tokens("a"))) > 15


@pytest.mark.parametrize("known", [1, 7, 19])
def test_an_answer_goes_on_elsewhere_as_it_would_have_here(stage, known):
    here, there = stage.worker("here"), stage.worker("there")
    here.generate(stage.request("whole", max_tokens=20))
    stage.time.run()
    whole = stage.tokens("whole")

    there.generate(stage.request("rest", output=whole[:known], max_tokens=20))
    stage.time.run()

    assert stage.tokens("rest") == whole[known:]
    assert stage.end("rest") == "length"


def test_an_answer_ends_at_its_modelled_end_wherever_it_goes_on(stage):
    here = stage.worker("here", mean_output_tokens=10.0)
    there = stage.worker("there", mean_output_tokens=10.0)
    prompts = {str(number): [number + 3] * 40 for number in range(50)}
    for name, prompt in prompts.items():
        here.generate(stage.request(name, prompt=prompt, max_tokens=1_000))
    stage.time.run()
    lengths = {name: len(stage.tokens(name)) for name in prompts}
    assert all(stage.end(name) == "stop" for name in prompts)
    assert 5 < sum(lengths.values()) / 50 < 20

    for name, prompt in prompts.items():
        known = stage.tokens(name)[:2]
        if lengths[name] > 2:
            request = stage.request(f"{name}+", prompt=prompt, output=known, max_tokens=1_000)
            there.generate(request)
    stage.time.run()

    for name in prompts:
        if lengths[name] > 2:
            assert stage.tokens(name)[2:] == stage.tokens(f"{name}+")


def test_a_minimum_and_ignored_ends_are_kept(stage):
    worker = stage.worker(mean_output_tokens=1.0)
    worker.generate(stage.request("least", max_tokens=100, min_tokens=30))
    worker.generate(stage.request("all", max_tokens=100, ignore_eos=True))
    stage.time.run()

    assert len(stage.tokens("least")) == 30
    assert stage.end("least") == "stop"
    assert len(stage.tokens("all")) == 100


def test_an_abort_frees_the_blocks_at_once_and_nothing_more_is_heard(stage):
    worker = stage.worker(async_scheduling=True)
    worker.generate(stage.request(prompt=200, max_tokens=100))
    stage.time.run(until=5.5)
    assert worker.pool.num_held > 0
    heard = len(stage.deltas)

    assert worker.abort("r")

    assert worker.pool.num_held == 0
    stage.time.run()
    assert len(stage.deltas) == heard
    assert not worker.has_work
    assert not worker.abort("r")


def test_two_runs_of_the_same_arrivals_are_the_same(stage):
    def run(stage):
        workers = [
            stage.worker(f"w{n}", Profile(), num_kv_blocks=64, max_model_len=512) for n in (0, 1)
        ]
        for number in range(60):
            prompt = [number % 7 + 3] * (20 + 11 * (number % 13))
            request = stage.request(str(number), prompt=prompt, max_tokens=1 + number % 40)
            worker = workers[number % 2]
            stage.time.at(
                0.003 * number, lambda worker=worker, request=request: worker.generate(request)
            )
        stage.time.run()
        assert all(worker.pool.num_held == 0 for worker in workers)
        return stage.deltas, stage.batches

    assert run(stage) == run(type(stage)())


def test_steps_cost_what_the_profile_says(stage):
    profile = Profile(
        step_ms=10.0,
        prefill_ms_per_token=1.0,
        prefill_ms_per_pair=0.01,
        decode_ms_per_seq=2.0,
        decode_ms_per_kv_token=0.1,
    )
    worker = stage.worker(profile=profile, speedup=10.0)

    worker.generate(stage.request(prompt=100, max_tokens=2))
    stage.time.run()

    prefill_s = (10 + 100 + 100 * 50 * 0.01) / 1e4
    decode_s = (10 + 2 + 101 * 0.1) / 1e4
    assert stage.times() == pytest.approx([prefill_s, prefill_s + decode_s])


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"n": 2}, "n = 2"),
        ({"logprobs": 1}, "logprobs = 1"),
        ({"prompt_logprobs": 0}, "prompt_logprobs = 0"),
        ({"embed": True}, "embed = True"),
    ],
)
def test_what_needs_a_model_is_refused_by_name(stage, params, named):
    with pytest.raises(RequestError, match=named):
        stage.worker().generate(stage.request(**params))


def test_wrong_requests_are_refused_and_leave_nothing(stage):
    worker = stage.worker(max_model_len=64)
    worker.generate(stage.request("r", prompt=8))

    for wrong, named in (
        (stage.request("r"), "request_id = 'r'"),
        (stage.request("long", prompt=64), "prompt"),
        (stage.request("empty", prompt=[]), "prompt"),
        (stage.request("foreign", prompt=[49_152]), "prompt_token_ids = 49152"),
        (stage.request("negative", prompt=[-1]), "prompt_token_ids"),
    ):
        with pytest.raises(RequestError, match=named):
            worker.generate(wrong)

    stage.time.run()
    assert worker.pool.num_held == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense", "is not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "profile.version = None: must be 1"),
        ('{"version": 2}', "profile.version = 2: must be 1"),
        ('{"version": 1, "step_mss": 3}', "did you mean step_ms"),
        ('{"version": 1, "step_ms": -1}', "profile.step_ms = -1: must be a number of at least 0"),
        ('{"version": 1, "step_ms": NaN}', "profile.step_ms = nan"),
        ('{"version": 1, "step_ms": "6"}', "profile.step_ms = '6'"),
        ('{"version": 1, "transfer_gb_s": 0}', "profile.transfer_gb_s = 0: must be above 0"),
        ('{"version": 1, "kv_bytes_per_token": 1.5}', "must be a whole number"),
    ],
)
def test_a_wrong_profile_is_refused_by_field_value_and_remedy(text, named):
    with pytest.raises(ConfigError) as error:
        Profile.from_json(text)
    assert named in str(error.value)


def test_a_profile_survives_its_file(tmp_path):
    path = tmp_path / "fast.json"
    path.write_text(Profile(step_ms=2.5).to_json())

    assert Profile.read(path) == Profile(step_ms=2.5)
    with pytest.raises(ConfigError, match="cannot be read"):
        Profile.read(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"role": "king"}, "worker.role"),
        ({"speedup": 0}, "speedup"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"eos_token_ids": (50_000,)}, "eos_token_ids"),
        ({"mean_output_tokens": -1.0}, "mean_output_tokens"),
        ({"mean_output_tokens": 5.0, "eos_token_ids": ()}, "eos_token_ids"),
    ],
)
def test_a_wrong_flag_is_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        MockerConfig(name="w", **options)
