"""An engine is measured, and the model that comes out is the one that it runs by."""

from dataclasses import asdict, replace

import pytest

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.document import Document, Limits, load_profile, read_document
from stafette.platform.profiling.measuring import Plan, begin, count, measure

PLAN = Plan(prompts=(64, 256, 1024), shares=(0.0, 0.5), batches=(1, 2, 4, 8), contexts=(64, 512))


def ignore(*_):
    pass


def test_the_model_of_a_mock_worker_is_found_again(target):
    found = measure(Document(subject=target.subject, limits=target.limits), target, PLAN, ignore)

    truth = asdict(target._engine._worker.config.profile)
    for name, term in found.fit.terms.items():
        if name != "first_token_ms":
            assert term == pytest.approx(truth[name], rel=0.02), name
    assert found.fit.max_error < 0.01


def test_a_prompt_of_two_chunks_costs_two_steps(target):
    point = target.prefill(1024, 0)

    # 2 steps, 1024 tokens, 1024 * 512 pairs
    assert point.ms == pytest.approx(2 * 5 + 512 + 524.288, abs=0.01)
    assert point.steps == 2


def test_only_what_is_not_cached_is_computed(target):
    point = target.prefill(256, 256)

    assert point.ms == pytest.approx(5 + 128 + 256 * (256 + 128) / 1000, abs=0.01)


def test_a_batch_is_filled_once_and_measured_at_every_size(engine, target):
    points = target.decode([2, 8, 4], 64)

    assert [point.batch for point in points] == [8, 4, 2]
    assert engine.requests == 8 + 1  # one has warmed up
    for point in points:
        expected = 5 + point.batch + 0.01 * (point.kv_tokens + point.batch)
        assert point.ms == pytest.approx(expected, rel=0.01)
    assert not engine.has_work


def test_what_the_file_holds_is_not_measured_again(tmp_path, engine, target):
    path = tmp_path / "profile.json"
    first = Plan(prompts=(64,), shares=(0.0,), batches=(1,), contexts=(64,))
    measure(begin(path, target), target, first, lambda news: news.write(path))
    told = []
    before = engine.requests

    found = measure(begin(path, target), target, first, told.append)

    assert engine.requests == before
    assert told == []
    assert [point.name for point in found.points] == ["prefill 64 after 0", "decode 1 x 64"]


def test_an_interrupt_loses_at_most_one_point(tmp_path, target):
    path = tmp_path / "profile.json"

    def keep(news):
        news.write(path)
        if len(news.points) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(begin(path, target), target, PLAN, keep)

    assert len(read_document(path).points) == 3
    assert len(measure(begin(path, target), target, PLAN, ignore).points) == count(
        PLAN, target.limits
    )


def test_a_profile_of_another_model_is_not_added_to(tmp_path, target):
    path = tmp_path / "profile.json"
    Document(subject={"kind": "engine", "model": "other"}).write(path)

    with pytest.raises(InvalidSetting, match=r"subject\.model = 'other': is of another one"):
        begin(path, target)


def test_a_profile_of_other_limits_is_not_added_to(tmp_path, target):
    path = tmp_path / "profile.json"
    Document(subject=target.subject, limits=replace(target.limits, max_num_seqs=1)).write(path)

    with pytest.raises(InvalidSetting, match="name another file"):
        begin(path, target)


def test_other_room_for_kv_is_no_other_worker(tmp_path, target):
    path = tmp_path / "profile.json"
    Document(subject=target.subject, limits=replace(target.limits, kv_tokens=8000)).write(path)

    assert begin(path, target).limits == target.limits


def test_the_progress_adds_up_to_the_number_of_points(target):
    done = []

    measure(
        Document(subject=target.subject, limits=target.limits),
        target,
        PLAN,
        ignore,
        lambda name, points: done.append(points),
    )

    assert sum(done) == count(PLAN, target.limits)


def test_nothing_is_planned_that_does_not_fit():
    limits = Limits(max_num_seqs=4, max_model_len=300, kv_tokens=1000, block_size=16)
    plan = Plan(prompts=(64, 512), batches=(1, 4, 8), contexts=(64, 200, 1024))

    assert {new + cached for new, cached in plan.prefills(limits)} == {64}
    # 4 x (64 + 64) = 512 fits into 900, 4 x (200 + 64) = 1056 does not
    assert plan.decodes(limits) == [(64, [4, 1]), (200, [1])]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"prompts": ()}, "prompts"), ({"shares": (1.0,)}, "shares"), ({"batches": (0,)}, "batches")],
)
def test_a_plan_of_nothing_or_nonsense_is_refused(wrong, named):
    with pytest.raises(InvalidSetting, match=f"--{named}"):
        Plan(**wrong)


def test_shares_need_a_prefix_cache(target):
    class Forgetful(type(target._engine)):
        def step(self):
            return [replace(delta, num_cached_tokens=0) for delta in super().step()]

    target._engine = Forgetful()
    target._clock = target._engine.time

    with pytest.raises(InvalidSetting, match="set enable_prefix_caching"):
        target.prefill(64, 64)


def test_what_is_written_is_read_as_it_was(tmp_path, target):
    path = tmp_path / "profile.json"
    plan = Plan(prompts=(64, 128), shares=(0.0,), batches=(1, 2), contexts=(64,))
    found = measure(begin(path, target), target, plan, lambda news: news.write(path))

    again = read_document(path)

    assert again.points == found.points
    assert again.model == found.model
    assert load_profile(path) == found.model
