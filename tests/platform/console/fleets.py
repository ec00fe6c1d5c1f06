"""Fleets to be shown: a thousand workers that are made up, and what serves any of them by HTTP."""

import asyncio
import random
from contextlib import asynccontextmanager

from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import Unavailable
from stafette.platform.frontend.generator import Status
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, address, listen
from stafette.workers.weights.opening import open_tokenizer

POOLS = {"prefill": "prefill", "decode": "decode", "spare": "both"}


def worker(number: int, **fields) -> dict:
    """Return a worker as GET /v1/workers tells it."""
    pool = list(POOLS)[number % len(POOLS)]
    return {
        "name": f"{pool}-{number:04d}",
        "epoch": 1,
        "address": f"10.0.{number // 250}.{number % 250}:4000",
        "class": pool,
        "host": f"host-{number // 8}",
        "max_num_seqs": 256,
        "max_model_len": 32_768,
        "num_blocks": 1_000,
        "block_size": 16,
        "block_bytes": 2 << 20,
        "role": POOLS[pool],
        "draining": False,
        "running": 0,
        "waiting": 0,
        "queued_tokens": 0,
        "used_blocks": 0,
        "cached_blocks": 0,
        "prefix_queries": 0,
        "prefix_hits": 0,
        "pulled_tokens": 0,
        "passed_tokens": 0,
        "heard_s": 0.1,
        **fields,
    }


SLO = {"ttft_ms": 500.0, "ttft_percentile": 95.0, "itl_ms": 50.0, "itl_percentile": 99.0}
PLAN = {
    "age_s": 1.0,
    "since_s": 30.0,
    "replicas": {"decode": 3},
    "flips": [{"worker": "decode-0001", "before": "decode", "role": "prefill"}],
    "release": [],
    "violations": [],
    "held": None,
    "explanation": {
        "observed": {"rate": 7.0},
        "predicted": {"rate_middle": 8.0, "rate_upper": 9.0},
        "needed": {"decode": 3},
        "decided_by": "itl",
        "notes": ["forecast by holt"],
    },
}


class FakePlanner:
    """Says that three replicas are planned, two asked for, and one is ready."""

    def __init__(self) -> None:
        self.silent = False

    async def overview(self, last: int) -> dict:
        if self.silent:
            raise Unavailable("the planner does not answer")
        pool = {"planned": 3, "target": 2, "ready": 1, "pin": {"replicas": 3, "left_s": 60.0}}
        told = {"mode": "on", "slo": SLO, "pools": {"decode": pool}, "plans": [dict(PLAN)]}
        return told | {"effects": [{"age_s": 2.0, "subject": "decode"}]}


class FedFleet:
    """A generator that shows the workers that it is fed with, and makes no tokens."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.fed = [worker(number) for number in range(count)]
        self.random = random.Random(seed)
        self.told: list[dict] = []  # decisions

    def stir(self, count: int) -> list[dict]:
        """Let so many of them do something; return these."""
        stirred = self.random.sample(self.fed, count)
        for each in stirred:
            each["used_blocks"] = self.random.randrange(1_001)
            each["cached_blocks"] = self.random.randrange(1_001)
            each["running"] = self.random.randrange(257)
            each["waiting"] = self.random.randrange(4)
            each["prefix_queries"] += 1_000
            each["prefix_hits"] += self.random.randrange(1_001)
            each["pulled_tokens"] += self.random.randrange(5_000)
        return stirred

    def workers(self):
        return self.fed

    def decisions(self, query):
        return {"decisions": self.told, "counters": {}}

    def placement(self, request_id):
        return None

    def status(self):
        return Status(
            num_running=sum(each["running"] for each in self.fed),
            num_waiting=sum(each["waiting"] for each in self.fed),
            prefix_queries=sum(each["prefix_queries"] for each in self.fed),
            prefix_hits=sum(each["prefix_hits"] for each in self.fed),
        )


@asynccontextmanager
async def served(generator, keys=None, tokenizer=None, max_model_len=4_096):
    """Give the frontend of a generator, and its URL."""
    config = FrontendConfig(port=0, drain_timeout_s=1.0, served_model_name=("small",))
    tokenizer = tokenizer or open_tokenizer("smollm2")
    frontend = Frontend(
        Served.of(config, "small", tokenizer, max_model_len), generator, config, keys
    )
    server, listener = Server(frontend), listen(config)
    started = asyncio.Event()
    running = asyncio.create_task(server.run(listener, started.set))
    await started.wait()
    try:
        yield frontend, address(config, listener)
    finally:
        server.stop()
        await running
