"""Who leaves a pool that shrinks."""

from stafette.platform.serving.victims import victims


def worker(name, running=0, waiting=0, used_blocks=0, draining=False):
    return {
        "name": name,
        "running": running,
        "waiting": waiting,
        "used_blocks": used_blocks,
        "draining": draining,
    }


def test_whoever_has_the_least_under_way_leaves_and_who_drains_already_before_all():
    workers = [
        worker("decode-busy", running=9),
        worker("decode-old", running=2, used_blocks=50),
        worker("decode-new", running=1, waiting=1, used_blocks=10),
        worker("decode-leaving", running=8, draining=True),
        worker("decode_large-idle"),
        worker("prefill-idle"),
    ]

    names = [each["name"] for each in victims(workers, "decode", 3)]

    assert names == ["decode-leaving", "decode-new", "decode-old"]


def test_a_worker_that_has_said_nothing_yet_has_nothing_to_move():
    found = victims([worker("decode-a", running=1), {"name": "decode-b"}], "decode", 1)

    assert [each["name"] for each in found] == ["decode-b"]
