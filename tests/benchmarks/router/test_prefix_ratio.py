"""The sweep asks what it says, and counts what it is told."""

import asyncio
from contextlib import suppress

import pytest

from benchmarks.router.completions import Answer, BadAnswer, completion, together
from benchmarks.router.curves import Panel, draw, write_csv
from benchmarks.router.prefix_load import Load, arrivals, ask, measure, prompts, summary
from benchmarks.router.prefix_ratio import KV, MODES, PROFILE, ROUND_ROBIN
from benchmarks.router.virtual_deployment import VirtualDeployment

LOAD = Load(requests=40, prompt_tokens=100, output_tokens=10, beginnings=4)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_prompts_share_so_much_of_their_beginning_with_some_and_nothing_more(ratio):
    made = prompts(LOAD, ratio, seed=3)

    shared = round(100 * ratio)
    assert {len(prompt) for prompt in made} == {100}
    assert len({tuple(prompt[:shared]) for prompt in made}) == 4
    assert len({tuple(prompt[shared:]) for prompt in made}) == 40
    assert made == prompts(LOAD, ratio, seed=3)
    assert made != prompts(LOAD, ratio, seed=4)


def test_arrivals_come_at_the_rate_and_answers_differ_in_length():
    times, lengths = arrivals(Load(requests=4_000, requests_s=10.0, output_tokens=10), seed=1)

    assert 380 < times[-1] < 420
    assert times == sorted(times)
    assert 9.5 < sum(lengths) / 4_000 < 10.5
    assert (min(lengths), max(lengths)) == (1, 19)


def test_a_summary_has_the_mean_the_middle_and_the_tail():
    answers = [Answer(first_s=n / 1e3, total_s=1.0, cached_tokens=0) for n in range(101)]

    found = summary(answers, took_s=10.1, hit_percent=7.0)

    assert (found.ttft_mean_ms, found.ttft_p50_ms, found.ttft_p99_ms) == (50.0, 50.0, 99.0)
    assert (found.total_mean_ms, found.requests_s, found.hit_percent) == (1_000.0, 10.0, 7.0)


class Server:
    """Answers every request with the same bytes, in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.asked = []
        self.open = 0

    async def serve(self, reader, writer) -> None:
        self.open += 1
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                self.asked.append(await reader.readexactly(length))
                for piece in self.pieces:
                    writer.write(piece)
                    await writer.drain()
        writer.close()
        await writer.wait_closed()
        self.open -= 1

    async def ask(self, requests, **options):
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            try:
                return await together(server.sockets[0].getsockname(), requests, **options)
            finally:
                while self.open:
                    await asyncio.sleep(0)


async def test_a_streamed_answer_is_counted_from_its_first_event_to_its_last_chunk():
    server = Server(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b'a\r\ndata: {"choices": [{"text": "a"}]}\n\n\r\n',
        b'a\r\ndata: {"usage": {"prompt_tokens_details": {"cached_tokens": 48}}}\n\n\r\n',
        b"0\r\n\r\n",
    )

    answers, _ = await server.ask([completion("m", [1, 2], 3)] * 5, times=[0.0] * 5)

    assert [answer.cached_tokens for answer in answers] == [48] * 5
    assert all(0 < answer.first_s <= answer.total_s for answer in answers)
    assert b'"prompt": [1, 2]' in server.asked[0]


async def test_an_endpoint_that_refuses_is_quoted():
    server = Server(b"HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\nfull")

    with pytest.raises(BadAnswer, match="429"):
        await server.ask([completion("m", [1], 1)], times=[0.0])


@pytest.mark.parametrize("mode", list(MODES))
def test_on_a_virtual_clock_a_run_is_the_same_twice_and_kv_finds_more(mode):
    load = Load(requests=40, requests_s=8.0, prompt_tokens=1_024, output_tokens=8, beginnings=6)

    def run(policy):
        return measure(VirtualDeployment(MODES[mode], policy, PROFILE, 512), ask(load, 0.9, 1))

    kv = run(KV)
    assert kv == run(KV)
    assert kv.hit_percent > run(ROUND_ROBIN).hit_percent + 5
    assert 0 < kv.ttft_mean_ms < kv.total_mean_ms


def test_curves_are_drawn_and_written(tmp_path):
    panels = [Panel(f"p{n}", "x", "y", {"a": [(1.0, 2.0), (2.0, None)]}) for n in range(3)]

    draw(tmp_path / "c.png", "title", panels, columns=2)
    write_csv(tmp_path / "c.csv", ["x", "y"], [[1, 2], [3, 4]])

    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "c.csv").read_text().split() == ["x,y", "1,2", "3,4"]
