"""What a dry run tells of a plan."""

from stafette.platform.planner.plan import Plan, RoleFlip
from stafette.platform.planner.scaler import DryRun


def told(scaler):
    return [(effect.subject, effect.wish, effect.state) for effect in scaler.effects()]


def test_dry_run_tells_every_wish_and_does_none():
    scaler = DryRun()

    scaler.apply(
        Plan(
            at=1.0,
            replicas={"decode": 3},
            flips=[RoleFlip("w1", "decode", "prefill")],
            release=["w2"],
        )
    )

    assert told(scaler) == [
        ("decode", "3 replicas", "not tried"),
        ("w1", "role prefill", "not tried"),
        ("w2", "drain", "not tried"),
    ]


def test_wish_that_was_told_is_not_told_again():
    scaler = DryRun()
    scaler.apply(Plan(at=1.0, replicas={"decode": 3, "prefill": 1}))
    scaler.effects()

    scaler.apply(Plan(at=2.0, replicas={"decode": 3, "prefill": 2}))

    assert told(scaler) == [("prefill", "2 replicas", "not tried")]


def test_plan_that_is_held_wishes_nothing():
    scaler = DryRun()

    scaler.apply(Plan(at=1.0, replicas={"decode": 3}, held="a clock went back"))

    assert told(scaler) == []
