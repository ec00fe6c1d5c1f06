"""A real Prometheus reads a running stack at one port, and answers questions about it."""

import asyncio
import json
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote

import pytest
import yaml
from tests.platform.observability.asking import get
from tests.platform.observability.conftest import PATIENCE_S, PROMPT

RULES = Path(__file__).parents[3] / "charts" / "stafette" / "rules" / "stafette.yaml"

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is missing: apt-get install prometheus"
)


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    async def value(self, query: str) -> float | None:
        """Return the only value of a query's answer; None while there is none."""
        found = await self.ask(f"query?query={quote(query)}")
        return float(found["result"][0]["value"][1]) if found["result"] else None

    async def ask(self, path: str) -> dict:
        return json.loads(await asyncio.to_thread(get, f"{self._url}/api/v1/{path}"))["data"]

    async def await_value(self, query: str, condition) -> float:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    found = await self.value(query)
                except URLError:  # it has not begun to listen
                    found = None
                if found is not None and condition(found):
                    return found
                await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(port: int, target: int, folder: Path):
    config = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "stafette", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        yield Prometheus(port)
    finally:
        process.kill()
        await process.wait()


async def test_prometheus_reads_a_node_at_one_port_and_answers(make_stack, free_port, tmp_path):
    stack = await make_stack()
    stack.keep_apart("p0", "d0")
    async with prometheus(free_port(), stack.port, tmp_path) as server:
        await server.await_value('up{job="stafette"}', lambda up: up == 1)
        await stack.complete()
        await server.await_value("sum(vllm:generation_tokens_total)", lambda n: n == 8)
        for _ in range(4):
            await stack.complete()
        await server.await_value("sum(vllm:generation_tokens_total)", lambda n: n == 40)

        targets = await server.ask("targets")
        processes = await server.value('count(count by (process) ({process!=""}))')
        first_s = await server.value(
            "histogram_quantile(0.5, sum by (le) (vllm:time_to_first_token_seconds_bucket))"
        )
        growth = await server.value("sum(rate(stafette_worker_computed_tokens_total[10s]))")
        hits = await server.value(
            'sum(vllm:prefix_cache_hits_total{process="p0"})'
            ' / sum(vllm:prefix_cache_queries_total{process="p0"})'
        )
        rules = await server.ask("rules")

    (target,) = targets["activeTargets"]
    assert target["lastError"] == ""
    assert processes == 3
    assert 0 < first_s < PATIENCE_S
    assert growth > 0
    assert 0.5 < hits < 1  # four of five prompts were there, but for their last tokens
    assert len(PROMPT) > 16
    assert {each["health"] for each in rules["groups"][0]["rules"]} <= {"ok", "unknown"}
