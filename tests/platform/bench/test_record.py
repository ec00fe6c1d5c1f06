"""What the times of a request are called, on timelines made by hand."""

import pytest
from tests.platform.bench.played import chunk

from stafette.platform.bench.asking import Heard, Manner, ask, read_events
from stafette.platform.bench.client import Client, ClientConfig
from stafette.platform.bench.record import Record


def record(*chunks_s, **fields):
    return Record(number=0, began_s=0.0, chunks_s=chunks_s, **fields)


def test_the_first_and_the_last_event_with_text_bound_an_answer():
    told = record(0.5, 0.6, 0.9, output_tokens=3)

    assert told.ttft_s == 0.5
    assert told.e2e_s == 0.9
    assert told.tpot_s == pytest.approx(0.2)
    assert told.itl_s == pytest.approx([0.1, 0.3])


def test_time_per_token_goes_by_tokens_and_gaps_by_events():
    told = record(1.0, 2.0, output_tokens=5)  # one event brought four tokens

    assert told.tpot_s == 0.25
    assert told.itl_s == [1.0]


def test_a_single_token_has_no_time_per_token():
    assert record(0.5, output_tokens=1).tpot_s is None


def test_an_answer_that_does_not_stream_has_an_end_only():
    told = record(0.7, output_tokens=9, streamed=False)

    assert (told.ttft_s, told.tpot_s, told.itl_s, told.e2e_s) == (None, None, [], 0.7)


def test_an_error_has_no_times():
    told = record(0.5, 0.6, output_tokens=2, error="timeout")

    assert (told.ttft_s, told.tpot_s, told.itl_s, told.e2e_s) == (None, None, [], None)


def test_a_record_is_the_same_after_it_was_written():
    told = record(0.5, 0.75, output_tokens=2, session="s1", turn=3, cached_tokens=7)

    assert Record.of(told.to_dict()) == told


def test_neither_role_nor_usage_nor_end_is_a_token():
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    pieces = [chunk("", role="assistant"), chunk("a"), chunk("b"), chunk(None, usage)]
    events = [(piece[6:].strip(), float(at)) for at, piece in enumerate(pieces, start=1)]
    heard = Heard(began=0.0)

    read_events(heard, [*events, (b"[DONE]", 5.0)])

    assert heard.chunks_s == [2.0, 3.0]
    assert (heard.prompt_tokens, heard.output_tokens, heard.text) == (7, 2, "ab")
    assert not heard.error


def test_reasoning_and_calls_of_tools_are_part_of_an_answer():
    delta = {"index": 0, "delta": {"reasoning_content": "hm"}}
    call = {"index": 0, "delta": {"tool_calls": [{"function": {"arguments": "{}"}}]}}
    events = [(chunk(None, choices=[each])[6:], at) for at, each in ((1.0, delta), (2.0, call))]
    heard = Heard(began=0.0)

    read_events(heard, [*events, (b"[DONE]", 3.0)])

    assert heard.chunks_s == [1.0, 2.0]
    assert heard.output_tokens == 2  # no usage: an event is a token


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([chunk("a")], "the stream broke off"),
        ([b"data: [DONE]\n\n"], "the answer is empty"),
        ([b"data: nonsense\n\n"], "an event is no JSON"),
        ([chunk("a"), b'data: {"error": {"message": "worker lost"}}\n\n'], "stream: worker lost"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error_by_its_kind(serve, pieces, kind):
    client = Client(serve(lambda body: pieces).endpoint, ClientConfig())

    heard = await ask(client, Manner(model="tiny"), [{"role": "user", "content": "hi"}], 4)

    client.close()
    assert heard.error == kind


async def test_a_refusal_is_told_in_the_servers_words(serve):
    client = Client(serve(status=429).endpoint, ClientConfig())

    heard = await ask(client, Manner(model="tiny"), [{"role": "user", "content": "hi"}], 4)

    client.close()
    assert heard.error == "HTTP 429: played"
    assert not heard.lost


async def test_a_whole_answer_is_timed_at_its_end(serve):
    whole = {"choices": [{"message": {"content": "hi there"}}], "usage": {"completion_tokens": 2}}
    import json

    client = Client(serve(lambda body: [json.dumps(whole).encode()]).endpoint, ClientConfig())
    heard = await ask(
        client, Manner(model="tiny", stream=False), [{"role": "user", "content": "x"}], 2
    )

    client.close()
    assert heard.chunks_s == [heard.ended_s]
    assert (heard.text, heard.output_tokens) == ("hi there", 2)


async def test_a_server_that_says_nothing_is_a_timeout(serve):
    config = ClientConfig(request_s=0.1)
    client = Client(serve(gap_s=5.0).endpoint, config)

    heard = await ask(client, Manner(model="tiny"), [{"role": "user", "content": "hi"}], 4)

    client.close()
    assert heard.error == "timeout"
