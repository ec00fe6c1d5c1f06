"""The application on Ray Serve: real processes, real clients, and what a fleet lives through."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PROMPTS = [f"Chapter {i}. The runner who carried the baton number {i} was" for i in range(6)]
LONG = " ".join(f"Lap {i} was run in {50 + i % 9} seconds." for i in range(40))


async def answer(client, prompt, max_tokens=40, on_text=lambda: None):
    stream = await client.completions.create(
        model="smollm2",
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text = ""
    async for event in stream:
        text += event.choices[0].text if event.choices else ""
        on_text()
    return text


async def answers(fleet, prompts=PROMPTS, max_tokens=40, on_text=lambda: None):
    async with fleet.client() as client:
        asked = [answer(client, prompt, max_tokens, on_text) for prompt in prompts]
        return await asyncio.gather(*asked)


def both_decode_workers(fleet, await_that) -> set[str]:
    """Return their names; a frontend that began just now may not have met them yet."""
    found: set[str] = set()

    def met() -> bool:
        found.clear()
        found.update(fleet.names("decode"))
        return len(found) == 2

    await_that(met)
    return found


async def test_it_answers_as_one_engine_alone_would(fleet, expected):
    prompts = [*PROMPTS, LONG]

    assert await answers(fleet, prompts) == [expected(prompt, 40) for prompt in prompts]
    assert (len(fleet.names("prefill")), len(fleet.names("decode"))) == (1, 2)


def test_any_frontend_tells_what_every_process_of_its_node_counts(fleet):
    with urllib.request.urlopen(f"{fleet.url}/metrics", timeout=10) as page:
        text = page.read().decode()

    alive = re.findall(r'^stafette_worker_alive{pool="(\w+)",process="([\w-]+)"} 1', text, re.M)
    assert {name for _, name in alive} == fleet.names("prefill") | fleet.names("decode")
    assert sorted(pool for pool, _ in alive) == ["decode", "decode", "prefill"]
    assert len(re.findall(r"^stafette_requests_in_flight{", text, re.M)) == 2
    assert 'stafette_node_processes{state="shown"} 5.0' in text


async def test_each_process_logs_json_with_the_request_that_it_is_about(fleet, await_that):
    async with fleet.client() as client:
        answer = await client.completions.create(
            model="smollm2", prompt="Go", max_tokens=2, extra_headers={"X-Request-Id": "from-afar"}
        )

    def lines():
        return [json.loads(line) for line in fleet.logged() if not line.startswith(":")]

    await_that(lambda: any("from-afar POST" in line["message"] for line in lines()))
    said = lines()
    (told,) = [line for line in said if "from-afar POST" in line["message"]]
    assert (told["level"], told["request"]) == ("info", answer.id)
    assert told["process"].startswith("frontend-")
    assert fleet.names("decode") <= {line["process"] for line in said}


async def test_a_killed_decode_worker_costs_no_token_and_is_replaced(fleet, expected, await_that):
    before, victims = both_decode_workers(fleet, await_that), fleet.processes("DecodeWorker")
    read = 0

    def kill_when_underway():
        nonlocal read
        read += 1
        if read == 60:
            victims[0].kill()

    got = await answers(fleet, max_tokens=80, on_text=kill_when_underway)

    assert got == [expected(prompt, 80) for prompt in PROMPTS]
    assert read > 60
    await_that(lambda: len(fleet.names("decode")) == 2 and fleet.names("decode") != before)


async def test_serving_goes_on_without_the_controller(fleet, expected, await_that):
    (controller,) = fleet.processes("ServeController")
    controller.kill()

    assert await answers(fleet) == [expected(prompt, 40) for prompt in PROMPTS]
    await_that(lambda: fleet.processes("ServeController") not in ([], [controller]))


async def test_a_killed_frontend_leaves_the_port_to_the_others(fleet, expected, await_that):
    victim, other = fleet.processes("stafette:Frontend")
    victim.kill()

    assert await answers(fleet) == [expected(prompt, 40) for prompt in PROMPTS]
    await_that(lambda: len(fleet.processes("stafette:Frontend")) == 2)
    assert other.is_running()


async def test_a_fleet_shrinks_and_grows_without_a_failed_request(fleet, expected, await_that):
    kept = fleet.processes("PrefillWorker") + fleet.processes("stafette:Frontend")
    before = both_decode_workers(fleet, await_that)
    shrinking = asyncio.create_task(asyncio.to_thread(fleet.update, "pools.decode.replicas=1"))
    rounds = []
    while not shrinking.done():
        rounds.append(await answers(fleet))
        await asyncio.sleep(1)  # what starts meanwhile needs the cores too
    (leaves,) = [line.split()[1] for line in (await shrinking).splitlines() if "leaves" in line]
    await_that(lambda: fleet.names("decode") == before - {leaves})

    said = await asyncio.to_thread(fleet.update)
    assert "stafette serves there already: it is updated" in said

    both_decode_workers(fleet, await_that)
    right = [expected(prompt, 40) for prompt in PROMPTS]
    assert rounds
    assert fleet.processes("PrefillWorker") + fleet.processes("stafette:Frontend") == kept
    assert all(each == right for each in rounds)


def test_a_worker_changes_its_role_on_demand(fleet, await_that):
    name = min(fleet.names("decode"))
    command = [sys.executable, "-P", "-m", "stafette", "worker", "role", name]
    options = ["--url", fleet.url, "--config", str(fleet.settings)]

    for role in ("both", "decode"):
        subprocess.run([*command, role, *options], check=True, timeout=240)
        await_that(lambda role=role: name in fleet.names(role))

    command[-1] = "nobody"
    run = subprocess.run([*command, "both", *options], capture_output=True, text=True, timeout=240)
    assert run.returncode == 1
    assert "worker = 'nobody': is not in the fleet" in run.stderr
    assert name in run.stderr


def test_prompts_are_computed_before_anybody_asks(fleet, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    talk = {"messages": [{"role": "user", "content": LONG}]}
    prompts.write_text(f"{json.dumps(LONG)}\n{json.dumps(talk)}\n")
    command = [sys.executable, "-P", "-m", "stafette", "preheat", str(prompts)]
    options = ["--url", fleet.url, "--config", str(fleet.settings)]

    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240)

    assert run.returncode == 0, run.stderr
    assert run.stdout.count("has 2 prompts cached") == 3  # prefill, and twice decode
    prompts.write_text('{"prompt": "x", "salt": "y"}\n')
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240)
    assert "prompts.jsonl:1: salt = 'y': is not known" in run.stderr


def test_status_and_chat_talk_to_the_fleet(fleet, await_that):
    def run(*arguments):
        command = [sys.executable, "-P", "-m", "stafette", *arguments, "--url", fleet.url]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=240, check=True
        ).stdout

    status = run("status")
    assert "pools: decode x 2, prefill x 1" in status
    assert status.count("serving") == 3
    head, *rows = [re.split(r"  +", line) for line in status.splitlines()[:4]]
    assert head[6:9] == ["KV used", "cached", "hits"]
    assert all(re.fullmatch(r"\d+%", row[7]) for row in rows)
    assert any(re.fullmatch(r"\d+%", row[8]) for row in rows)
    assert run("chat", "Say hello.", "--max-tokens", "5").strip()
    await_that(lambda: "prefill" in run("router", "explain", "--last", "1"))  # of one frontend


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "pools.decode.replicas=1000"], "are more than this machine's"),
        (["--set", "model=/nowhere"], "model = '/nowhere': no such file"),
        (["--detach"], "there is no cluster to leave it on"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_before_anything_starts(fleet, options, words):
    command = [sys.executable, "-P", "-m", "stafette", "serve", str(fleet.settings)]

    run = subprocess.run(
        [*command, "--address", "local", *options], capture_output=True, text=True, timeout=240
    )

    assert run.returncode == 1
    assert words in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_who_names_no_cluster_replaces_no_fleet(fleet):
    found = f"launching._running_cluster = lambda: {fleet.ray_address!r}"  # others run here too
    start = f"sys.exit(main(['serve', {str(fleet.settings)!r}]))"
    lines = ["import sys", "from stafette.platform.cli import main"]
    lines += ["from stafette.platform.serving import launching", found, start]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    before = fleet.workers()

    run = subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )

    assert run.returncode == 1
    assert "which runs on this machine (--address local: a new one)" in run.stdout
    assert "name = 'stafette': serves at" in run.stderr
    assert f"--address {fleet.ray_address} says that it shall" in run.stderr
    assert {w["name"] for w in fleet.workers()} == {w["name"] for w in before}


def test_a_port_in_use_is_said_before_anything_starts(fleet):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-P", "-m", "stafette", "serve", str(fleet.settings)]
        options = ["--address", "local", "--set", f"frontend.port={port}"]
        run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240)

    assert run.returncode == 1
    assert f"port = '127.0.0.1:{port}': cannot listen there" in run.stderr


async def test_a_pool_moves_to_another_node_and_outlives_it(fleet, expected, await_that):
    right = [expected(prompt, 40) for prompt in PROMPTS]
    with fleet.second_node("second") as node:
        before = fleet.names("decode")
        moving = "pools.decode.resources={second: 1}"
        update = asyncio.create_task(asyncio.to_thread(fleet.update, moving))
        rounds = []
        while not update.done():
            rounds.append(await answers(fleet))
            await asyncio.sleep(1)  # what starts meanwhile needs the cores too
        await update
        await_that(lambda: len(fleet.names("decode")) == 2 and not before & fleet.names("decode"))
        assert all(each == right for each in rounds)

        raylet = next(p for p in node.children(recursive=True) if "raylet" in p.name())
        read = 0

        def kill_when_underway():
            nonlocal read
            read += 1
            if read == 60:
                raylet.kill()

        got = await answers(fleet, max_tokens=80, on_text=kill_when_underway)
        assert got == [expected(prompt, 80) for prompt in PROMPTS]
        await_that(lambda: not fleet.names("decode"))  # the prefill worker decodes then
