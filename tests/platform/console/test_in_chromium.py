"""The page in a real browser: it shows what there is, and says nothing to its console."""

import asyncio
import json
import urllib.request
import zlib

import pytest
from tests.platform.console.fleets import FakePlanner, FedFleet, served

from stafette.platform.frontend.keys import ApiKey

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one browser for all of them

READY = "document.body.dataset.cursor"
LOOKS = [(1440, 900), (390, 844)]
WATCH = """
window.touched = new Set();
window.added = 0;
new MutationObserver((all) => {
  for (const each of all) {
    const cell = (each.target.closest ? each.target : each.target.parentNode)?.closest?.(".cell");
    if (cell) touched.add(cell.dataset.id);
    added += each.addedNodes.length;
  }
}).observe(document.getElementById("map"), {
  subtree: true, childList: true, attributes: true, characterData: true,
});
"""


async def post(url: str, **body) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )

    def send():
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    return await asyncio.to_thread(send)


async def get(url: str) -> dict:
    def ask():
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)

    return await asyncio.to_thread(ask)


def colours(png: bytes) -> int:
    """Return how many different bytes an image is made of: one that is blank has a handful."""
    at, packed = 8, b""
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        if kind == b"IDAT":
            packed += png[at + 8 : at + 8 + size]
        at += 12 + size
    return len(set(zlib.decompress(packed)))


def rows_of(selector: str) -> str:
    cells = "[...row.cells].map((cell) => cell.textContent)"
    return f"[...document.querySelectorAll('{selector} tbody tr')].map((row) => {cells})"


async def test_numbers_on_the_page_are_those_of_the_api(open_page, mocks):
    asked = [list(range(n, n + 160)) for n in (1, 1, 500)]
    for prompt in asked:
        body = {"model": "small", "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
        await post(f"{mocks.url}/v1/completions", **body)
    await mocks.frontend.console.step()
    page = await open_page(f"{mocks.url}/console")
    await page.until(READY)

    workers = (await get(f"{mocks.url}/v1/workers"))["data"]
    newest = (await get(f"{mocks.url}/v1/router/explain?last=3"))["decisions"]
    assert await page.text(".tile[data-name=Workers] b") == str(len(workers)) == "3"
    names = await page.run("[...document.querySelectorAll('.cell b')].map((b) => b.textContent)")
    assert sorted(names) == sorted(worker["name"] for worker in workers)
    shown = await page.run(rows_of("#decisions"))
    assert [row[1] for row in shown] == [each["request_id"] for each in newest]
    assert [int(row[3]) for row in shown] == [160, 160, 160]
    assert all(row[8] for row in shown), "each has a reason"
    first = await page.run("document.querySelector('.chart canvas').getAttribute('aria-label')")
    assert "P50 " in first
    assert "–" not in first, "there was a first token"

    await page.run("document.querySelectorAll('.cell')[0].click()")
    name = await page.text("#details h3")
    (chosen,) = (each for each in workers if each["name"] == name)
    details = await page.text("#details")
    assert f"{chosen['cached_blocks']:,} blocks" in details
    assert f"of {chosen['num_blocks']:,} blocks" in details
    await page.run("document.querySelector('#decisions button').click()")
    await page.until("document.querySelectorAll('.options li').length")
    assert page.problems == []


async def test_a_worker_that_dies_disappears(open_page, mocks):
    page = await open_page(f"{mocks.url}/console")
    await page.until("document.querySelectorAll('.cell').length === 3")

    await mocks.kill("d1")

    await page.until("document.querySelectorAll('.cell').length === 2")
    assert "d1" not in await page.text("#map")
    assert await page.text(".tile[data-name=Workers] b") == "2"
    assert page.problems == []


@pytest.mark.parametrize(("width", "height"), LOOKS)
async def test_it_looks_like_something_in_both_themes(open_page, width, height):
    async with served(FedFleet(60)) as (_, url):
        shots = []
        for dark in (False, True):
            page = await open_page(f"{url}/console", width, height, dark=dark)
            await page.until(f"{READY} && document.querySelectorAll('.cell').length === 60")
            shots.append(await page.screenshot())
            assert await page.run("document.documentElement.dataset.theme") == (
                "dark" if dark else "light"
            )
            assert await page.run("document.documentElement.scrollWidth") == width
            assert page.problems == []
    assert all(colours(shot) > 100 for shot in shots)
    assert shots[0] != shots[1]


async def test_the_theme_can_be_chosen_and_is_kept(open_page):
    async with served(FedFleet(3)) as (_, url):
        page = await open_page(f"{url}/console", dark=True)
        theme = "document.documentElement.dataset.theme"
        assert await page.run(theme) == "dark"

        await page.run("document.getElementById('theme').click()")
        await page.go(f"{url}/console")

        assert await page.run(theme) == "light"


async def test_a_thousand_workers_are_one_element_each_and_only_what_changed_is_touched(open_page):
    fleet = FedFleet(1_000)
    fleet.stir(1_000)
    async with served(fleet) as (frontend, url):
        page = await open_page(f"{url}/console")
        await page.until("document.querySelectorAll('.cell').length === 1000")
        assert await page.run("document.querySelectorAll('#map *').length") == 1_000
        assert await page.run("document.querySelectorAll('*').length") < 1_500
        await page.run(WATCH)
        before = await page.run(READY)

        stirred = fleet.stir(40)
        await page.until(f"{READY} !== '{before}'")
        await page.until("touched.size > 20")

        touched = await page.run("[...touched].map(Number)")
        numbers = {fleet.fed.index(each) + 1 for each in stirred}
        assert set(touched) <= numbers
        assert await page.run("added") < 10, "no cell is made anew, or moved"
        assert page.problems == []


async def test_workers_are_found_sorted_and_reached_by_keys(open_page):
    fleet = FedFleet(60)
    for number, each in enumerate(fleet.fed):
        each["used_blocks"], each["cached_blocks"] = number, 300
    async with served(fleet) as (_, url):
        page = await open_page(f"{url}/console")
        await page.until("document.querySelectorAll('.cell').length === 60")
        put = (
            "((id, value) => { const input = document.getElementById(id); input.value = value; "
            "input.dispatchEvent(new Event('input', {bubbles: true})); })"
        )
        labels = "[...document.querySelectorAll('.cell')].map((c) => c.getAttribute('aria-label'))"

        await page.run(f"{put}('role', 'decode')")
        assert await page.text("#workers-count") == "20 of 60"
        await page.run(f"{put}('sort', 'use')")
        assert (await page.run(labels))[:2] == ["decode-0058", "decode-0055"]
        await page.run(f"{put}('find', '005')")
        assert await page.run(labels) == ["decode-0058", "decode-0055", "decode-0052"]

        await page.run("document.querySelector('.cell[tabindex=\"0\"]').focus()")
        await page.press("ArrowRight")
        await page.press("Enter")
        assert await page.text("#details h3") == "decode-0055"
        fleet_levels = "[...document.querySelectorAll('.cell')].map((c) => c.dataset.level)"
        assert await page.run(fleet_levels) == ["0", "0", "0"]
        await page.run(f"{put}('measure', 'resident')")
        assert await page.run(fleet_levels) == ["3", "3", "3"]
        chosen = "document.querySelector('[aria-selected=true]').getAttribute('aria-label')"
        assert await page.run(chosen) == "decode-0055"
        assert page.problems == []


async def test_a_key_is_asked_for_kept_in_the_tab_and_never_in_the_url(open_page):
    fleet = FedFleet(3)
    async with served(fleet, keys=(ApiKey(name="alice", secret="sk-1"),)) as (_, url):
        page = await open_page(f"{url}/console")
        enter = (
            "(key) => { document.getElementById('key').value = key; "
            "document.querySelector('#sign-in-form button').click(); }"
        )
        await page.until("document.getElementById('sign-in').open")
        await page.run(f"({enter})('sk-wrong')")
        await page.until("document.getElementById('sign-in-wrong').textContent")
        await page.run(f"({enter})('sk-1')")
        await page.until("document.querySelectorAll('.cell').length === 3")

        assert await page.run("location.href") == f"{url}/console"
        assert await page.run("Object.values(sessionStorage)") == ["sk-1"]
        assert await page.run("JSON.stringify(localStorage)") == "{}"
        await page.go(f"{url}/console")
        await page.until("document.querySelectorAll('.cell').length === 3")
        assert all("401" in problem for problem in page.problems)


async def test_a_lost_connection_is_shown_and_comes_back_by_itself(open_page):
    async with served(FedFleet(3)) as (_, url):
        page = await open_page(f"{url}/console")
        state = "document.getElementById('connection').dataset.state"
        await page.until(f"{state} === 'live'")

        await page.offline(True)
        await page.until(f"{state} === 'lost'")
        await page.offline(False)
        await page.until(f"{state} === 'live'")

        assert await page.text("#connection") == "live"


async def test_what_the_fleet_says_is_text_and_never_markup(open_page):
    fleet = FedFleet(2)
    fleet.fed[0]["name"] = "<img src=x onerror=alert(1)>"
    async with served(fleet) as (_, url):
        page = await open_page(f"{url}/console")
        await page.until("document.querySelectorAll('.cell').length === 2")

        assert await page.run("document.querySelectorAll('#map img').length") == 0
        assert "<img" in await page.text("#map")
        assert page.problems == []


async def test_the_planners_timeline_has_its_reasons(open_page):
    planner = FakePlanner()
    async with served(FedFleet(3)) as (frontend, url):
        frontend.show_planner(planner)
        await frontend.console.step()
        page = await open_page(f"{url}/console")
        await page.until("document.querySelectorAll('#planner tbody tr').length")

        labels = "[...document.querySelectorAll('#planner canvas')].map((c) => c.ariaLabel)"
        assert await page.run(labels) == [
            "Requests a second: seen 7, foreseen 8, room for 9",
            "Replicas of decode: planned 3, asked for 2, ready 1",
        ]
        (plan,) = await page.run(rows_of("#planner"))
        assert plan[1:3] == ["decode 3", "itl"]
        assert "decode-0001: decode → prefill" in plan[3]
        assert "room wanted for 9" in plan[3]
        assert "pinned to 3" in await page.text("#planner")
        assert [row[2] for row in await page.run(rows_of("#pools"))] == ["2", "–", "–"]
        assert "SLO" in await page.text("#tiles")

        planner.silent = True
        await frontend.console.step()
        await page.until(
            "document.querySelector('#planner-note').textContent.includes('not answer')"
        )
        assert page.problems == []


async def test_a_fleet_without_workers_or_planner_says_so(open_page):
    async with served(FedFleet(0)) as (_, url):
        page = await open_page(f"{url}/console")
        await page.until(READY)

        assert "No worker is connected" in await page.text("#pools")
        assert "The planner is off" in await page.text("#planner")
        assert "No request was placed" in await page.text("#decisions")
        assert page.problems == []
