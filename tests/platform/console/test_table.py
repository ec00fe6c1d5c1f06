"""A reader that only gets what has changed knows the same as one that gets all."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.platform.console.fleets import worker

from stafette.platform.console.table import (
    DRAINING,
    HOW,
    SERVING,
    SILENT,
    UNHEARD,
    WHO,
    WorkerTable,
)

COUNT = st.integers(0, 1_000)
WORKERS = st.builds(
    worker,
    st.integers(0, 7),
    epoch=st.integers(1, 2),
    running=COUNT,
    used_blocks=COUNT,
    pulled_tokens=COUNT,
    draining=st.booleans(),
)
FLEETS = st.lists(WORKERS, max_size=8, unique_by=lambda each: each["name"])


class Reader:
    """Keeps rows by number, as the page does."""

    def __init__(self) -> None:
        self.version = 0
        self.rows: dict[int, dict] = {}

    def take(self, told: dict, version: int) -> None:
        self.version = version
        left = set(self.rows) if told["whole"] else set(told["gone"])
        for number, row in rows(told["who"]):
            left.discard(number)
            self.rows[number] = row
        for number, row in rows(told["how"]):
            self.rows[number] |= row
        for number in left:
            self.rows.pop(number, None)


def rows(columns: dict) -> list[tuple[int, dict]]:
    names = [name for name in columns if name != "id"]
    values = zip(*(columns[name] for name in names), strict=True)
    numbers = columns.get("id", ())
    return [(n, dict(zip(names, row, strict=True))) for n, row in zip(numbers, values, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FLEETS, st.booleans()), max_size=8))
def test_a_reader_of_changes_knows_what_a_reader_of_everything_knows(looks):
    table, patient = WorkerTable(), Reader()
    for version, (fleet, reads) in enumerate(looks, start=1):
        table.look(fleet, version, float(version))
        if reads:
            patient.take(table.since(patient.version), version)
            fresh = Reader()
            fresh.take(table.since(0), version)
            assert patient.rows == fresh.rows
            assert sorted(row["name"] for row in fresh.rows.values()) == sorted(
                each["name"] for each in fleet
            )


def test_who_has_not_changed_is_left_out():
    table = WorkerTable()
    fleet = [worker(0), worker(1)]
    table.look(fleet, 1, 1.0)
    fleet[1]["running"] = 5
    table.look(fleet, 2, 2.0)

    told = table.since(1)

    assert told["who"] == {}
    assert told["how"]["running"] == [5]
    assert set(told["how"]) == {"id", *HOW}
    assert set(table.since(0)["who"]) == {"id", *WHO}
    assert table.since(2) == {"whole": False, "gone": [], "who": {}, "how": {}}


def test_who_is_gone_is_told_once_and_a_new_life_has_a_new_number():
    table = WorkerTable()
    table.look([worker(0)], 1, 1.0)
    table.look([worker(0, epoch=2)], 2, 2.0)

    told = table.since(1)

    assert told["gone"] == [1]
    assert told["who"]["id"] == [2]
    assert table.since(2)["gone"] == []


def test_more_leaving_than_is_remembered_makes_the_next_reader_begin_anew():
    table = WorkerTable()
    for version in range(1, 6_000):
        table.look([worker(version % 2, epoch=version)], version, float(version))

    assert table.since(1)["whole"]
    assert not table.since(5_000)["whole"]
    assert len(table.since(5_000)["gone"]) == 999


def test_states_follow_from_what_a_worker_says_and_when():
    fleet = [worker(0), worker(1, draining=True), worker(2, heard_s=9.0), {"name": "new"}]
    table = WorkerTable()
    table.look(fleet, 1, 10.0)

    assert table.since(0)["how"]["state"] == [SERVING, DRAINING, SILENT, UNHEARD]


def test_what_moves_is_told_a_second_and_not_again_until_the_worker_speaks():
    table = WorkerTable()
    table.look([worker(0, pulled_tokens=100, heard_s=0.0)], 1, 10.0)
    table.look([worker(0, pulled_tokens=900, heard_s=0.0)], 2, 12.0)
    assert table.since(1)["how"]["pulled"] == [400]

    table.look([worker(0, pulled_tokens=900, heard_s=1.0)], 3, 13.0)
    assert table.since(2)["how"] == {}  # the same word as before

    table.look([worker(0, pulled_tokens=900, heard_s=0.0)], 4, 14.0)
    assert table.since(3)["how"]["pulled"] == [0]
