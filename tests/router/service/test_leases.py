"""What nobody renews expires, and nothing else does."""

from stafette.router.service.leases import Leases


def test_what_is_not_renewed_expires_once():
    leases = Leases()
    leases.hold("r", "r", 10.0, now=0.0)

    assert leases.expire(9.9) == []
    assert leases.expire(10.0) == ["r"]
    assert (leases.expire(99.0), len(leases), leases.expired) == ([], 0, 1)


def test_a_client_renews_all_that_it_holds_by_a_word_about_one():
    leases = Leases()
    for name in ("r1", "r2"):
        leases.hold(name, "client", 10.0, now=0.0)
    leases.hold("r3", "another", 10.0, now=0.0)

    leases.renew("r1", now=9.0)

    assert leases.expire(10.0) == ["r3"]
    assert leases.expire(18.9) == []
    assert leases.renew_holder("client", now=18.9) == 2
    assert leases.expire(28.9) == ["r1", "r2"]


def test_what_was_released_does_not_expire():
    leases = Leases()
    leases.hold("r1", "client", 10.0, now=0.0)
    leases.hold("r2", "client", 10.0, now=0.0)

    leases.release("r1")
    leases.release("r1")

    assert leases.expire(10.0) == ["r2"]


def test_a_clock_that_goes_backwards_ends_nothing_early():
    leases = Leases()
    leases.hold("r", "r", 10.0, now=100.0)

    leases.renew("r", now=5.0)

    assert leases.expire(109.0) == []


def test_a_word_about_what_nobody_holds_changes_nothing():
    leases = Leases()

    leases.renew("r", now=1.0)

    assert leases.renew_holder("client", now=1.0) == 0
    assert leases.expire(100.0) == []
