"""One page for all processes of a node."""

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.platform.observability.asking import get, samples, value

from stafette.platform.config import load
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.observability import members
from stafette.platform.observability.config import MetricsConfig
from stafette.platform.observability.families import Bounded, counter
from stafette.platform.observability.merging import merged
from stafette.platform.observability.node import NodePage
from stafette.platform.observability.process import ProcessMetrics

PATIENCE_S = 10.0


def page(name, folder, **config):
    process = ProcessMetrics(name, "decode")
    process.add(lambda: [counter("stafette_told", "x", 1.0)])
    return NodePage(process, MetricsConfig(**config), folder)


async def told_at(port):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
            except OSError:
                await asyncio.sleep(0.02)


async def test_every_process_shows_all_and_each_family_is_described_once(tmp_path):
    one, other = page("a", tmp_path), page("b", tmp_path)
    await one.start()
    await other.start()

    text = (await one.text()).decode()

    assert value(text, "stafette_told_total") == 2
    assert value(text, "stafette_told_total", process="b") == 1
    assert text.count("# HELP stafette_told_total") == 1
    assert value(text, "stafette_node_processes", state="shown") == 2
    await one.close()
    await other.close()
    assert not list(tmp_path.iterdir())


async def test_a_port_goes_to_another_process_when_the_first_one_ends(tmp_path, free_port):
    port = free_port()
    one, other = page("a", tmp_path, port=port), page("b", tmp_path, port=port)
    await one.start()
    await told_at(port)
    await other.start()

    assert value(await told_at(port), "stafette_told_total") == 2
    await one.close()

    assert value(await told_at(port), "stafette_told_total") == 1
    await other.close()


async def test_who_has_died_disappears_and_who_stands_still_is_counted(tmp_path):
    one, dead = page("a", tmp_path, ask_timeout_s=0.05), members.Member(tmp_path, lambda: b"")
    await one.start()
    await dead.start()
    dead._server.close()  # as the kernel does for a process that is killed
    end = asyncio.Event()

    async def stand_still(reader, writer):
        await end.wait()
        writer.close()

    still = await asyncio.start_unix_server(stand_still, tmp_path / "still")

    text = (await one.text()).decode()

    assert value(text, "stafette_node_processes", state="silent") == 1
    assert not dead.path.exists()
    end.set()
    still.close()
    await still.wait_closed()
    await one.close()
    await asyncio.sleep(0)


async def test_who_asks_and_does_not_read_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "_TELL_S", 0.05)
    text = b"x" * (8 << 20)  # more than fits between two processes
    member = members.Member(tmp_path, lambda: text)
    await member.start()

    reader, writer = await asyncio.open_unix_connection(member.path, limit=1)
    await asyncio.sleep(0.5)
    told = await reader.read(-1)
    writer.close()
    monkeypatch.undo()
    (other,) = await members.ask([member.path], timeout_s=30)
    await member.close()

    assert 0 < len(told) < len(text)
    assert other == text


async def test_more_processes_than_are_shown_are_counted(tmp_path):
    pages = [page(name, tmp_path, max_processes=2) for name in "abc"]
    for each in pages:
        await each.start()

    text = (await pages[0].text()).decode()

    assert value(text, "stafette_told_total") == 2
    assert value(text, "stafette_node_processes", state="left_out") == 1
    for each in pages:
        await each.close()


async def test_only_metrics_are_told_at_that_port(tmp_path, free_port):
    one = page("a", tmp_path, port=(port := free_port()))
    await one.start()
    await told_at(port)

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nPOST /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    first = await reader.readuntil(b"ask for /metrics\n")
    second = await reader.readuntil(b"use GET\n")

    assert first.startswith(b"HTTP/1.1 404")
    assert second.startswith(b"HTTP/1.1 405")
    writer.close()
    await one.close()


@pytest.fixture
def temporary(monkeypatch):
    with TemporaryDirectory() as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield folder


def test_a_folder_that_others_can_look_into_is_refused(temporary):
    folder = members.node_folder(b"token", "fleet")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert members.node_folder(b"another", "fleet") != folder

    folder.parent.chmod(0o755)

    with pytest.raises(InvalidSetting, match="not this user's alone"):
        members.node_folder(b"token", "fleet")


async def test_what_a_killed_fleet_has_left_is_swept_away_and_a_living_one_stays(temporary):
    dead, living = (members.Member(members.node_folder(b"t", f), lambda: b"") for f in "dl")
    for member in (dead, living):
        await member.start()
        os.utime(member.path.parent, (0, 0))
    dead._server.close()

    members.node_folder(b"t", "new")

    assert not dead.path.parent.exists()
    assert living.path.exists()
    await living.close()


def test_pages_without_a_last_newline_are_merged():
    text = b'# HELP a x\n# TYPE a gauge\na{p="1"} 1'

    assert [s.labels["p"] for s in samples(merged([text, text.replace(b"1", b"2")]).decode())] == [
        "1",
        "2",
    ]


def test_a_folder_that_cannot_be_made_is_named(temporary, monkeypatch):
    (Path(temporary) / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", f"{temporary}/file")

    with pytest.raises(InvalidSetting, match="TMPDIR .* cannot be made"):
        members.node_folder(b"token", "fleet")


def test_a_folder_that_is_too_deep_for_sockets_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("deep" * 15)))
    (tmp_path / ("deep" * 15)).mkdir()

    with pytest.raises(InvalidSetting, match="TMPDIR .* too long"):
        members.node_folder(b"token", "fleet")


def test_values_of_a_label_beyond_the_limit_are_one():
    bounded = Bounded(2)

    assert [bounded.of(name) for name in "abcab"] == ["a", "b", "other", "a", "b"]


@pytest.mark.parametrize("wrong", ["port=0", "port=70000", "ask_timeout_s=0", "max_processes=0"])
def test_a_wrong_setting_is_named_with_its_bounds(wrong):
    with pytest.raises(InvalidSetting, match=rf"metrics\.{wrong.partition('=')[0]} = .*must be"):
        load(None, [f"metrics.{wrong}"], {})


def test_every_process_of_a_fleet_is_told_of_the_port_and_of_the_models_name():
    config = load(None, ["metrics.port=9464", "frontend.served_model_name=[tiny]"], {}).config

    parts = [config.for_frontends(), config.for_workers("decode"), config.for_planner()]

    assert {part.metrics.port for part in parts} == {9464}
    assert config.for_workers("decode").served_name == "tiny"
