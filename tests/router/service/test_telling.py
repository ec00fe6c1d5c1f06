"""A terminal shows who was asked, what each would have cost, and who was left out."""

from stafette.router.service.telling import tell_decisions, tell_workers

PROMPT = list(range(1, 161))


async def test_a_decision_is_shown_with_its_candidates_terms_and_outcome(serve):
    served = await serve()
    for name in ("alpha", "beta", "gamma"):
        await served.client.register(name, 16)
    await served.client.post("state", worker="gamma", draining=True)
    await served.client.select("r0", PROMPT, pinned="beta")
    await served.client.free("r0")
    await served.client.select("r1", PROMPT)
    await served.client.first_token("r1", cached_tokens=144, ttft_ms=20.0)

    text = tell_decisions(await served.client.explain(request_id="r1"))

    head, outcome, columns, first, second, left_out = text.splitlines()
    assert head.startswith("r1: 160 tokens to beta  (kv, 0.0 s ago, 2 candidates, margin ")
    assert outcome.startswith("  predicted 159 cached (best anywhere 159), 6.0 ms; actual 144")
    assert columns.split() == [
        *["device", "waiting", "running", "blocks", "|", "prefill", "crowd", "|", "cost"],
        *["ttft", "ms"],
    ]
    assert first.split()[:6] == ["*", "beta", "10", "0", "0", "0"]
    assert second.split()[:5] == ["alpha", "0", "0", "0", "0"]
    assert left_out == "  left out: gamma: is draining"


async def test_a_pair_is_shown_as_both_of_its_workers(serve):
    served = await serve()
    await served.client.register("p", 16, role="prefill")
    await served.client.register("d", 16, role="decode")

    await served.client.select("r", list(range(8_000)))
    text = tell_decisions(await served.client.explain())

    assert "p > d" in text


async def test_more_candidates_than_are_kept_are_counted(serve):
    served = await serve(router={"explain": {"options": 2}})
    for number in range(5):
        await served.client.register(f"w{number}", 16)

    await served.client.select("r", PROMPT)
    text = tell_decisions(await served.client.explain())

    assert "5 candidates" in text
    assert text.splitlines()[-1] == "    and 3 more candidates"


async def test_workers_are_shown_with_their_state_and_load(serve):
    served = await serve()
    nobody = tell_workers(await served.client.workers())
    await served.client.register("a", 16, model="m", total_blocks=100)
    await served.client.register("b", 16, role="decode")
    await served.client.post("state", worker="b", healthy=False)
    await served.client.select("r", PROMPT, model="m")

    columns, a, b, sums = tell_workers(await served.client.workers()).splitlines()

    assert nobody.startswith("no worker is registered")
    assert tell_decisions({"decisions": []}) == "no decision was made yet"
    assert a.split()[:5] == ["a", "m", "both", "ready", "0"]
    assert "away: it was told" in b
    assert sums == "0 blocks known, 1 requests placed, 0 waiting"
