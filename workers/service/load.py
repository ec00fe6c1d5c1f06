"""What a worker says of its load with each beat, real or simulated."""

from collections.abc import Mapping

from stafette.workers.stats import SchedulerStats

# Since its start; the last two of prompts brought from, or given to, other workers.
COUNTERS = ("prefix_queries", "prefix_hits", "preemptions", "pulled_tokens", "passed_tokens")


def load_of(stats: SchedulerStats, role: str, draining: bool) -> Mapping[str, object]:
    return {
        "role": role,
        "draining": draining,
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "queued_tokens": stats.num_queued_tokens,
        "used_blocks": stats.num_blocks_used,
        "prefix_queries": stats.prefix_queries,
        "prefix_hits": stats.prefix_hits,
        "preemptions": stats.num_preemptions,
    }
