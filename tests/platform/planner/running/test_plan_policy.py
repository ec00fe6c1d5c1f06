"""What the policy in Ray Serve's controller answers, and when it dares to."""

import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

with warnings.catch_warnings():  # of what Ray does with pydantic
    warnings.simplefilter("ignore")
    from ray.serve.config import AutoscalingPolicy

    from stafette.platform.planner.running.plan_policy import PlanPolicy


class Board:
    """What is posted, as Ray's head keeps it; each post is another."""

    def __init__(self) -> None:
        self.plan: bytes | None = None
        self.broken = False
        self._posts = 0

    def post(self, **replicas: int) -> None:
        self._posts += 1
        self.plan = json.dumps({"id": self._posts, "replicas": replicas}).encode()

    def look(self, application: str) -> bytes | None:
        assert application == "stafette"
        if self.broken:
            raise ConnectionError("the head is away")
        return self.plan


def context(name: str, target: int = 1) -> SimpleNamespace:
    return SimpleNamespace(app_name="stafette", deployment_name=name, target_num_replicas=target)


def settled(policy: PlanPolicy, asked):
    """Return its answer when it has read what is posted, as it will have some ticks later."""
    for _ in range(2):  # what was being read may be older than what is posted
        policy(asked)
        policy._reading.exception(timeout=60)
    return policy(asked)


@pytest.fixture
def board():
    return Board()


@pytest.fixture
def policy(board):
    policy = PlanPolicy(board.look)
    assert settled(policy, context("DecodeWorker", 2)) == (2, {})
    return policy


def test_a_deployment_gets_what_is_posted_for_it(board, policy):
    board.post(DecodeWorker=5)

    assert settled(policy, context("DecodeWorker", 2)) == (5, {})
    assert settled(policy, context("PrefillWorker", 3)) == (3, {})


def test_an_application_gets_all_sizes_at_once(board, policy):
    board.post(DecodeWorker=5, PrefillWorker=0)
    asked = {name: context(name) for name in ("DecodeWorker", "PrefillWorker", "Worker")}

    sizes, state = settled(policy, asked)

    assert (sizes, state) == ({"DecodeWorker": 5, "PrefillWorker": 0, "Worker": 1}, {})


def test_a_plan_from_before_it_is_not_followed_until_it_is_posted_again(board):
    board.post(DecodeWorker=7)
    policy = PlanPolicy(board.look)
    assert settled(policy, context("DecodeWorker", 1)) == (1, {})

    board.post(DecodeWorker=7)

    assert settled(policy, context("DecodeWorker", 1)) == (7, {})


def test_sizes_stay_while_the_board_cannot_be_read(board, policy, caplog):
    board.post(DecodeWorker=5)
    assert settled(policy, context("DecodeWorker", 2)) == (5, {})
    board.broken = True

    assert settled(policy, context("DecodeWorker", 5)) == (5, {})
    assert "the head is away" in caplog.text


def test_it_travels_to_a_controller_that_has_nothing_of_ours():
    carried = AutoscalingPolicy(policy_function=PlanPolicy).get_serialized_policy_def()
    elsewhere = (
        "import sys; sys.modules['stafette'] = None\n"
        "from ray import cloudpickle\n"
        "print(cloudpickle.loads(sys.stdin.buffer.read())())"
    )

    done = subprocess.run(
        [sys.executable, "-P", "-c", elsewhere], input=carried, capture_output=True, timeout=120
    )

    assert b"PlanPolicy object" in done.stdout, done.stderr
