import asyncio
import signal
import time

import pytest

from stafette.kvtransfer.strict import pack
from stafette.workers.errors import ConfigError, Declined, RequestError, WorkerLost
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.service import frames
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.frames import Order
from stafette.workers.service.server import WorkerServer

PATIENCE_S = 30.0


async def await_that(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_request_is_answered_token_by_token(connect, served, make_order, collected):
    client = await connect()
    wanted = make_order("a", 3, 4, priority=2, lora="law", cache_salt="s", kv={"p2p": {"x": 1}})

    assert await collected(client, wanted) == [5, 6, 7, 8, 9]

    seen = served.orders[0]
    assert seen.request.prompt_token_ids == [3, 4]
    assert (seen.request.priority, seen.request.lora, seen.request.cache_salt) == (2, "law", "s")
    assert seen.kv_params == {"p2p": {"x": 1}}
    assert not seen.request.detokenize


async def test_an_answer_goes_on_from_what_was_said_elsewhere(connect, make_order, collected):
    client = await connect()

    assert await collected(client, make_order("a", 3, output_token_ids=[4, 5])) == [6, 7, 8, 9, 10]


async def test_many_requests_on_one_stream_get_their_own_answers(connect, make_order, collected):
    client = await connect()

    answers = await asyncio.gather(
        *(collected(client, make_order(f"r{i}", 100 * i + 1, max_tokens=50)) for i in range(40))
    )

    assert answers == [list(range(100 * i + 2, 100 * i + 52)) for i in range(40)]
    assert client.num_requests == 0


async def test_the_worker_says_what_it_is(connect):
    client = await connect()

    assert client.description == {"role": "both", "blocks": 12}
    assert client.epoch == 7


async def test_a_refused_request_costs_the_others_nothing(connect, make_order, collected):
    client = await connect()
    good = asyncio.create_task(collected(client, make_order("good", 1, max_tokens=200)))

    with pytest.raises(RequestError, match="must not begin with 0"):
        await collected(client, make_order("bad", 0))
    raw = Order(Request(request_id="x", prompt_token_ids=[1], params=SamplingParams()), {})
    object.__setattr__(raw.request.params, "temperature", -1.0)
    with pytest.raises(RequestError, match="temperature"):  # the worker reads it for itself
        await collected(client, raw)

    assert await good == list(range(2, 202))


async def test_leaving_a_stream_early_aborts_the_request(connect, served, make_order):
    client = await connect()

    async for _ in client.generate(make_order("left", 1, max_tokens=100_000)):
        break

    await await_that(lambda: served.left_early == ["left"])


async def test_a_frontend_that_leaves_has_all_of_its_requests_aborted(
    connect, served, server, make_order, collected
):
    client = await connect()
    served.may_go_on.clear()
    tasks = [asyncio.create_task(collected(client, make_order(f"{i}", 1))) for i in range(5)]
    await await_that(lambda: server.num_requests == 5)

    await client.close()

    for task in tasks:
        with pytest.raises(WorkerLost, match="closed here"):
            await task
    await await_that(lambda: len(served.left_early) == 5)
    await await_that(lambda: server.num_requests == 0)


async def test_a_dead_engine_ends_the_stream_so_that_all_its_requests_go_elsewhere(
    connect, served, make_order, collected
):
    losses = []
    client = await connect(on_lost=lambda client, error: losses.append(error))
    served.may_go_on.clear()
    waiting = asyncio.create_task(collected(client, make_order("w", 1)))
    await await_that(lambda: served.orders)
    served.dead = True

    with pytest.raises(WorkerLost):
        await collected(client, make_order("last", 1))

    with pytest.raises(WorkerLost):
        await waiting
    assert len(losses) == 1
    with pytest.raises(WorkerLost):
        await collected(client, make_order("after", 1))


async def test_a_worker_tells_its_load_with_every_beat(connect, make_order, collected):
    client = await connect()
    await collected(client, make_order("a", 1))

    await await_that(lambda: client.load == {"running": 1})


async def test_a_frontend_that_falls_silent_has_its_requests_aborted(
    served, make_order, configured
):
    config = configured(beat_s=0.1, silence_s=0.5)
    server = await WorkerServer.start(served, config)
    client = await WorkerClient.connect("w", server.address, "silent", config)
    served.may_go_on.clear()
    client._outbox.put(frames.pack_order(frames.GENERATE, 0, make_order("a", 1)))
    await await_that(lambda: served.orders)

    client._tasks[2].cancel()  # its beats

    await await_that(lambda: served.left_early == ["a"])
    assert server.refused == 1
    await client.close()
    await server.stop()


async def test_a_prefill_is_answered_at_its_end(connect, make_order):
    client = await connect()

    outcome = await client.prefill(make_order("p", 1, 2, 3, kv={"to": "d"}), 5.0)

    assert outcome == {"tokens": 3, "to": "d"}


async def test_questions_are_answered_refused_or_given_up_in_time(connect):
    client = await connect()

    assert await client.ask("double", [1, "x"], 5.0) == [1, "x", 1, "x"]
    with pytest.raises(RequestError, match="none of this worker's"):
        await client.ask("triple", None, 5.0)
    with pytest.raises(WorkerLost, match=r"within 0\.1 s"):
        await client.ask("wait", None, 0.1)
    assert client.num_requests == 0
    assert client.lost is None


async def test_who_does_not_know_the_token_is_refused_by_both_ends(connect, server):
    with pytest.raises(WorkerLost, match="did not prove"):
        await connect(token=b"another cluster's token")


async def test_a_frontend_with_a_wrong_proof_is_refused(connect, server, monkeypatch):
    from stafette.workers.service.auth import Challenge

    monkeypatch.setattr(Challenge, "response", lambda self, token, greeting: pack([b"x" * 32]))

    with pytest.raises(WorkerLost, match="it did not prove that it knows"):
        await connect()
    await await_that(lambda: server.refused == 1)


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancel_that_comes_together_with_a_refusal_is_not_lost(connect, monkeypatch, turns):
    asked = asyncio.Event()
    refusal = asyncio.get_running_loop().create_future()

    async def greet(self, frontend):
        asked.set()
        await refusal

    monkeypatch.setattr(WorkerClient, "_greet", greet)
    task = asyncio.create_task(connect())
    await asked.wait()

    refusal.set_exception(PermissionError("no"))
    for _ in range(turns):
        await asyncio.sleep(0)
    in_time = task.cancel()
    await asyncio.wait([task])

    assert task.cancelled() == in_time


async def test_another_worker_at_the_address_is_not_taken_for_the_wanted_one(connect):
    with pytest.raises(WorkerLost, match="at its address is w"):
        await connect(name="somebody else")


async def test_nobody_at_the_address_is_a_lost_worker(connect):
    with pytest.raises(WorkerLost, match="no stream to"):
        await connect(address="127.0.0.1:1")


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        pack("generate"),
        pack(["generate", 0]),
        pack(["generate", -1, b"", b"", {}, {}]),
        pack(["generate", 0, b"abc", b"", {}, {"id": "a", "priority": 0}]),
        pack(["generate", 0, b"", b"", [], {}]),
        pack(["ask", 0, 5, None]),
        pack(["dance", 0]),
    ],
)
async def test_malformed_messages_end_the_stream_and_harm_no_other(
    connect, server, make_order, collected, message
):
    liar, other = await connect(), await connect()

    liar._outbox.put(message)

    await await_that(lambda: liar.lost is not None)
    await await_that(lambda: server.refused == 1)
    assert await collected(other, make_order("a", 1)) == [2, 3, 4, 5, 6]


async def test_a_number_that_is_in_use_ends_the_stream(connect, served, make_order):
    client = await connect()
    served.may_go_on.clear()
    message = frames.pack_order(frames.GENERATE, 5, make_order("a", 1))

    client._outbox.put(message)
    client._outbox.put(message)

    await await_that(lambda: client.lost is not None)
    assert "one that is not in use" in str(client.lost)


async def test_a_frontend_that_does_not_read_is_dropped(
    served, make_order, configured, monkeypatch
):
    config = configured(max_unsent_bytes=50_000)
    server = await WorkerServer.start(served, config)
    monkeypatch.setattr(WorkerClient, "_read", lambda client: asyncio.Event().wait())
    client = await WorkerClient.connect("w", server.address, "slow", config)

    served.times = 200  # the system's buffers hold megabytes before anything waits here
    long = make_order("a", 100_000, max_tokens=10**7)
    client._outbox.put(frames.pack_order(frames.GENERATE, 0, long))

    await await_that(lambda: server.refused == 1)
    await await_that(lambda: served.left_early == ["a"])
    await client.close()
    await server.stop()


async def test_more_requests_than_a_stream_may_have_are_declined_one_by_one(
    served, make_order, configured, collected
):
    config = configured(max_requests=2)
    server = await WorkerServer.start(served, config)
    client = await WorkerClient.connect("w", server.address, "f", config)
    served.may_go_on.clear()
    held = [asyncio.create_task(collected(client, make_order(f"{i}", 1))) for i in range(2)]
    await await_that(lambda: server.num_requests == 2)

    with pytest.raises(Declined, match="at most 2"):
        await collected(client, make_order("third", 1))

    served.may_go_on.set()
    assert await asyncio.gather(*held) == [[2, 3, 4, 5, 6]] * 2
    await client.close()
    await server.stop()


async def test_a_killed_worker_is_lost_at_once(start_worker, connect, make_order, collected):
    process, address = await start_worker()
    client = await connect(address=address)
    tasks = [
        asyncio.create_task(collected(client, make_order(f"{i}", 1, max_tokens=10**6)))
        for i in range(3)
    ]
    await asyncio.sleep(0.2)

    process.kill()

    for task in tasks:
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(task, PATIENCE_S)


async def test_a_worker_that_falls_silent_is_given_up(start_worker, connect, make_order, collected):
    process, address = await start_worker()
    client = await connect(address=address, beat_s=0.1, silence_s=0.5)
    task = asyncio.create_task(collected(client, make_order("a", 1, max_tokens=10**6)))
    await asyncio.sleep(0.2)

    process.send_signal(signal.SIGSTOP)

    with pytest.raises(WorkerLost, match="no word"):
        await asyncio.wait_for(task, PATIENCE_S)
    process.send_signal(signal.SIGCONT)


async def test_finishing_waits_for_what_is_under_way(
    connect, served, server, make_order, collected
):
    client = await connect()
    served.may_go_on.clear()
    task = asyncio.create_task(collected(client, make_order("a", 1)))
    await await_that(lambda: server.num_requests == 1)

    assert not await server.finish(0.1)
    served.may_go_on.set()
    assert await server.finish(PATIENCE_S)

    assert await task == [2, 3, 4, 5, 6]


async def test_a_port_in_use_is_named(served, server, configured):
    port = int(server.address.rpartition(":")[2])

    with pytest.raises(ConfigError, match=f"{port}"):
        await WorkerServer.start(served, configured(port=port))
