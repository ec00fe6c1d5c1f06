"""The planner over HTTP, played by a double that keeps its rules."""

import pytest

from stafette.platform.frontend.errors import InvalidSetting, Unavailable
from stafette.platform.frontend.keys import ApiKey


class FakePlanner:
    def __init__(self):
        self.pins = {}
        self.asked = []
        self.away = False

    async def overview(self, last):
        self.asked.append(last)
        if self.away:
            raise Unavailable("the planner does not answer: it may be starting, ask again")
        return {"mode": "on", "pools": {}, "plans": [], "effects": []}

    async def pin(self, pool, replicas, for_s):
        if pool != "decode":
            raise InvalidSetting("pool", pool, "is not planned; there are decode")
        self.pins[pool] = (replicas, for_s)

    async def unpin(self, pool):
        return self.pins.pop(pool, None) is not None


@pytest.fixture
def planner(api):
    made = FakePlanner()
    api.app.show_planner(made)
    return made


async def test_plans_are_told_as_many_as_are_asked_for(api, planner):
    assert (await api.get("/v1/planner")).json()["mode"] == "on"
    assert planner.asked == [10]


async def test_a_pool_is_pinned_and_let_go(api, planner):
    pinned = await api.post("/v1/planner/pins", pool="decode", replicas=4, for_s=1800)
    assert (pinned.status, planner.pins) == (200, {"decode": (4, 1800.0)})

    let_go = await api.send("DELETE", "/v1/planner/pins/decode", b"", {})
    again = await api.send("DELETE", "/v1/planner/pins/decode", b"", {})

    assert (let_go.status, again.status) == (200, 404)
    assert "is not pinned" in again.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pool": "decode", "replicas": -1, "for_s": 60}, "replicas = -1: "),
        ({"pool": "decode", "replicas": 1, "for_s": 0}, "for_s = 0"),
        ({"pool": "decode", "replicas": 1}, "for_s: is required"),
        ({"pool": "encode", "replicas": 1, "for_s": 60}, "is not planned; there are decode"),
    ],
)
async def test_a_wrong_pin_is_refused_by_name(api, planner, fields, words):
    refused = await api.post("/v1/planner/pins", **fields)

    assert refused.status == 400
    assert words in refused.json()["error"]["message"]
    assert not planner.pins


async def test_a_planner_that_is_away_is_said_to_be(api, planner):
    planner.away = True

    answer = await api.get("/v1/planner")

    assert (answer.status, "it may be starting" in answer.json()["error"]["message"]) == (503, True)


async def test_where_nothing_is_planned_that_is_what_is_told(api):
    assert (await api.get("/v1/planner")).json()["mode"] == "off"
    refused = await api.post("/v1/planner/pins", pool="decode", replicas=1, for_s=60)
    assert (refused.status, "planner.mode" in refused.json()["error"]["message"]) == (404, True)


async def test_pins_need_a_key_where_there_are_keys(make_api):
    api = make_api(keys=(ApiKey(name="one", secret="the key of one"),))
    api.app.show_planner(FakePlanner())

    assert (await api.get("/v1/planner")).status == 401
    assert (await api.send("DELETE", "/v1/planner/pins/decode", b"", {})).status == 401
