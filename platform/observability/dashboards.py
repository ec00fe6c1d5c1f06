"""The dashboards, in one place: `charts/generate.py` writes them as files for Grafana."""

from dataclasses import dataclass

SELECT = 'job=~"$job"'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    queries: tuple[Query, ...]
    unit: str = "short"  # Grafana's


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    rows: tuple[Row, ...]


def rate(name: str, by: str = "", labels: str = "") -> str:
    """Return how much a counter grows in a second, added up."""
    over = f" by ({by})" if by else ""
    return f"sum{over} (rate({name}{{{_labels(labels)}}}{_RATE}))"


def total(name: str, by: str = "", labels: str = "") -> str:
    over = f" by ({by})" if by else ""
    return f"sum{over} ({name}{{{_labels(labels)}}})"


def quantiles(name: str, *shares: float) -> tuple[Query, ...]:
    buckets = rate(f"{name}_bucket", "le")
    return tuple(
        Query(f"histogram_quantile({share}, {buckets})", f"p{share * 100:g}") for share in shares
    )


def by(title: str, name: str, label: str, unit: str = "short", labels: str = "") -> Panel:
    """A counter's growth by one of its labels."""
    return Panel(title, (Query(rate(name, label, labels), f"{{{{{label}}}}}"),), unit)


def _labels(labels: str) -> str:
    return f"{labels},{SELECT}" if labels else SELECT


def dashboards() -> tuple[Dashboard, ...]:
    return (
        Dashboard("stafette-requests", "stafette: requests", (_LATENCY, _TRAFFIC, _TENANTS)),
        Dashboard("stafette-workers", "stafette: workers", (_ENGINES, _CACHE, _TIERS)),
        Dashboard("stafette-fleet", "stafette: router and hand-over", (_ROUTER, _MOVING, _FLEET)),
        Dashboard("stafette-planner", "stafette: planner", (_PLANS,)),
    )


_LATENCY = Row(
    "Latency",
    (
        Panel("First token", quantiles("vllm:time_to_first_token_seconds", 0.5, 0.95, 0.99), "s"),
        Panel(
            "Between tokens", quantiles("vllm:inter_token_latency_seconds", 0.5, 0.95, 0.99), "s"
        ),
        Panel("Whole request", quantiles("vllm:e2e_request_latency_seconds", 0.5, 0.95, 0.99), "s"),
    ),
)
_TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Tokens per second",
            (
                Query(rate("vllm:prompt_tokens_total"), "prompt"),
                Query(rate("vllm:generation_tokens_total"), "answer"),
            ),
        ),
        by("Responses", "stafette_http_responses_total", "status", "reqps"),
        by("Answers ended", "vllm:request_success_total", "finished_reason", "reqps"),
        Panel(
            "Requests",
            (
                Query(total("stafette_requests_in_flight"), "let in"),
                Query(total("vllm:num_requests_running"), "sequences computed"),
                Query(total("vllm:num_requests_waiting"), "sequences that wait"),
                Query(total("stafette_dispatch_waiting"), "answers without a worker"),
            ),
        ),
        by("Not let in", "stafette_rejected_total", "reason", "reqps"),
        Panel(
            "Tokens of a request",
            (
                *quantiles("vllm:request_prompt_tokens", 0.95),
                *quantiles("vllm:request_generation_tokens", 0.95),
            ),
        ),
    ),
)
_TENANTS = Row(
    "API keys",
    (
        by("Requests", "stafette_tenant_requests_total", "tenant", "reqps"),
        by("Tokens made", "stafette_tenant_tokens_total", "tenant", labels='kind="generation"'),
    ),
)
_ENGINES = Row(
    "Engines",
    (
        Panel(
            "Share of time in steps",
            (Query(rate("stafette_worker_busy_seconds_total", "process"), "{{process}}"),),
            "percentunit",
        ),
        Panel("Step time", quantiles("stafette_worker_step_seconds", 0.5, 0.95), "s"),
        Panel("Time in the queue", quantiles("vllm:request_queue_time_seconds", 0.5, 0.95), "s"),
        by("Tokens computed", "stafette_worker_computed_tokens_total", "pool"),
        Panel(
            "Sequences computed",
            (Query(total("vllm:num_requests_running", "process"), "{{process}}"),),
        ),
        Panel(
            "Prompt tokens that wait",
            (Query(total("stafette_worker_queued_tokens", "process"), "{{process}}"),),
        ),
        by("Preemptions", "vllm:num_preemptions_total", "process"),
    ),
)
_CACHE = Row(
    "KV cache",
    (
        Panel(
            "In use",
            (Query(f"max by (process) (vllm:kv_cache_usage_perc{{{SELECT}}})", "{{process}}"),),
            "percentunit",
        ),
        Panel(
            "Prefix hit rate",
            (
                Query(
                    f"{rate('vllm:prefix_cache_hits_total', 'pool')}"
                    f" / {rate('vllm:prefix_cache_queries_total', 'pool')}",
                    "{{pool}}",
                ),
            ),
            "percentunit",
        ),
    ),
)
_TIERS = Row(
    "Tiers below the pools",
    (
        Panel(
            "Blocks", (Query(total("stafette_tier_blocks", "tier, state"), "{{tier}} {{state}}"),)
        ),
        Panel(
            "Bytes", (Query(rate("stafette_tier_bytes_total", "tier, way"), "{{tier}} {{way}}"),),
            "Bps",
        ),
        Panel(
            "What became of blocks",
            (Query(rate("stafette_tier_events_total", "tier, event"), "{{tier}} {{event}}"),),
        ),
    ),
)  # fmt: skip
_ROUTER = Row(
    "Router",
    (
        by("Decisions", "stafette_router_decisions_total", "result", "reqps"),
        Panel(
            "Prompt found in a cache",
            tuple(
                Query(
                    f"{rate('stafette_router_cached_tokens_total', labels=which)}"
                    f" / {rate('stafette_router_prompt_tokens_total')}",
                    legend,
                )
                for legend, which in (("chosen", 'which="chosen"'), ("best", 'which="best"'))
            ),
            "percentunit",
        ),
        Panel(
            "First token: wrong by, and regret",
            tuple(
                Query(
                    f"{rate(f'stafette_router_{what}_seconds_total')}"
                    f" / {rate('stafette_router_outcomes_total')}",
                    what,
                )
                for what in ("ttft_error", "regret")
            ),
            "s",
        ),
        by("Batches of KV events", "stafette_router_event_batches_total", "result"),
        Panel("Index", (Query(total("stafette_router_index_entries", "process"), "{{process}}"),)),
        by("Told to other routers", "stafette_router_gossip_total", "result"),
    ),
)
_MOVING = Row(
    "Hand-over of KV",
    (
        by("Tokens", "stafette_handover_tokens_total", "way"),
        by("Bytes", "stafette_transfer_bytes_total", "transport", "Bps"),
        Panel(
            "Bandwidth of a transfer",
            (
                Query(
                    f"{rate('stafette_transfer_bytes_total', 'transport')}"
                    f" / {rate('stafette_transfer_seconds_total', 'transport')}",
                    "{{transport}}",
                ),
            ),
            "Bps",
        ),
        by("Less came than there was", "stafette_handover_shortfalls_total", "reason"),
        by("Failed transfers", "stafette_transfer_failures_total", "reason"),
        by("Leases ended", "stafette_leases_ended_total", "reason"),
    ),
)
_FLEET = Row(
    "Fleet",
    (
        Panel(
            "Workers",
            (Query(f"max by (role, draining) (stafette_workers{{{SELECT}}})",
                   "{{role}}, draining: {{draining}}"),),
        ),
        by("Legs of answers", "stafette_dispatch_total", "what", "reqps"),
        by("Moved off workers that drain", "stafette_moves_total", "result"),
        Panel(
            "Processes that tell",
            (Query(f"sum by (state) (stafette_node_processes{{{SELECT}}})", "{{state}}"),),
        ),
    ),
)  # fmt: skip
_PLANS = Row(
    "Plans",
    (
        Panel(
            "Workers",
            (
                Query(
                    f"max by (of, what) (stafette_planner_replicas{{{SELECT}}})",
                    "{{of}}, {{what}}",
                ),
            ),
        ),
        Panel("Needed", (Query(total("stafette_planner_needed", "role"), "{{role}}"),)),
        Panel(
            "Requests a second",
            (
                Query(total("stafette_planner_observed", labels='what="rate"'), "seen"),
                Query(total("stafette_planner_predicted", "what"), "{{what}}"),
            ),
            "reqps",
        ),
        Panel(
            "Promises that cannot be kept",
            (Query(total("stafette_planner_broken_promise_seconds", "target"), "{{target}}"),),
            "s",
        ),
        Panel("Holds still", (Query(total("stafette_planner_held"), "held"),)),
    ),
)
