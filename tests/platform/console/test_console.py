"""What a page is told, look by look."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.platform.console.fleets import FakePlanner, FedFleet

from stafette.platform.console import console as console_module
from stafette.platform.console.console import KEPT, WINDOW_S, Console, Subject
from stafette.platform.console.history import History, Moment
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.metrics.recent import percentile


class Stage:
    """A console whose time a test moves."""

    def __init__(self, workers: int = 3) -> None:
        self.now = 100.0
        self.fleet, self.metrics = FedFleet(workers), Metrics()
        subject = Subject("small", self.fleet, self.metrics, lambda: 2)
        self.console = Console(subject, lambda: self.now)

    async def step(self) -> None:
        self.now += 2
        await self.console.step()

    def ask(self, cursor: str = "", after_s: float = 1.0) -> dict:
        self.now += after_s
        return json.loads(json.dumps(self.console.data(cursor)))


@pytest.fixture
def stage():
    return Stage()


def test_the_first_answer_tells_all_and_the_next_one_what_is_new(stage):
    first = stage.ask()
    assert (first["model"], first["in_flight"], len(first["workers"]["who"]["id"])) == (
        "small",
        2,
        3,
    )

    stage.fleet.fed[1]["running"] = 9
    second = stage.ask(first["cursor"])

    assert "model" not in second
    assert second["workers"]["how"]["running"] == [9]
    assert second["workers"]["who"] == second["history"] == {}


@pytest.mark.parametrize("cursor", ["", "x", "0123abcd.5", ".7", "1.1.1", "é.²", "a." + "9" * 99])
def test_a_cursor_of_nobody_gets_everything(stage, cursor):
    stage.ask()

    told = stage.ask(cursor)

    assert told["workers"]["whole"]
    assert told["model"] == "small"


def test_a_cursor_from_the_future_is_no_more_than_the_newest(stage):
    life = stage.ask()["cursor"].split(".")[0]

    assert stage.ask(f"{life}.{10**17}")["workers"]["who"] == {}


def test_readers_at_the_same_time_share_one_look(stage):
    first = stage.ask()
    stage.fleet.fed[0]["running"] = 5

    assert stage.ask("", after_s=0.1)["cursor"] == first["cursor"]
    assert stage.ask("", after_s=1.0)["cursor"] != first["cursor"]


def test_a_large_fleet_is_asked_less_often():
    assert Stage(10).ask()["again_s"] < Stage(1_000).ask()["again_s"]


def test_a_moment_has_counts_since_the_one_before_and_percentiles_of_a_window(stage):
    metrics = stage.metrics
    for ttft_s in (0.1, 0.2, 0.3, 0.4):
        metrics.recent.saw_first_token(stage.now, ttft_s)
    metrics.recent.answered(stage.now + 1, 0.1, 0.02)
    metrics.generation_tokens = 40
    stage.now += 2
    stage.console.remember()
    metrics.generation_tokens = 50
    stage.now += WINDOW_S
    stage.console.remember()

    history = stage.ask()["history"]

    assert history["output_tokens"] == [40, 10]
    assert history["ttft_p50"] == [300.0, None]
    assert history["ttft_p95"] == [400.0, None]
    assert history["itl_p50"] == [20.0, None]
    assert history["answered"] == [1, 0]


async def test_the_planner_tells_the_promise_and_its_moments(stage):
    planner = FakePlanner()
    stage.console.show_planner(planner)
    cursor = stage.ask()["cursor"]
    for _ in range(3):
        await stage.step()

    told = stage.ask(cursor)
    assert told["promise"] == {"ttft_ms": 500.0, "itl_ms": 50.0, "share": 0.95}
    assert [moment["rate"] for moment in told["planner"]["moments"]] == [7.0] * 3
    assert told["planner"]["moments"][0]["pools"] == {"decode": [3, 2, 1]}
    assert told["planner"]["told"]["plans"][0]["replicas"] == {"decode": 3}

    planner.silent = True
    await stage.step()
    later = stage.ask(told["cursor"])
    assert later["planner"]["moments"] == []
    assert "does not answer" in later["planner"]["told"]["silent"]


async def test_requests_are_held_against_the_promise(stage):
    stage.console.show_planner(FakePlanner())
    await stage.step()
    for ttft_s, itl_s in ((0.1, 0.02), (0.6, 0.02), (0.1, 0.08), (0.1, None)):
        stage.metrics.recent.answered(stage.now + 1, ttft_s, itl_s)
    await stage.step()

    history = stage.ask()["history"]

    assert (history["answered"][-1], history["kept"][-1]) == (4, 2)


def test_without_a_planner_nothing_is_promised(stage):
    told = stage.ask()

    assert told["promise"] is None
    assert "planner" not in told


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2_000), st.integers(0, 2_100))
def test_a_history_never_grows_beyond_its_bound(count, since):
    history = History(KEPT)
    for version in range(1, count + 1):
        history.add(version, moment(version))

    told = history.since(since)

    expected = [v for v in range(1, count + 1) if v > since and v > count - KEPT]
    assert len(history) <= KEPT
    assert told.get("at", []) == [float(v) for v in expected]


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([0.5, 0.95]))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values, share):
    found = percentile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


def moment(at: int) -> Moment:
    of_nothing = {name: 0 for name in Moment.__dataclass_fields__}
    return Moment(**{**of_nothing, "at": float(at)})


async def test_a_generator_that_fails_costs_a_moment_and_no_more(stage, monkeypatch, caplog):
    monkeypatch.setattr(console_module, "STEP_S", 0.001)
    status, failures = stage.fleet.status, [OSError("gone")]

    def fail_once():
        if failures:
            raise failures.pop()
        return status()

    stage.fleet.status = fail_once
    stage.console.start()
    async with asyncio.timeout(20):
        while not stage.ask()["history"]:
            await asyncio.sleep(0.01)
    await stage.console.close()

    assert "is missing" in caplog.text
