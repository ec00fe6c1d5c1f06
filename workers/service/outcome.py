"""What became of a prompt that was computed for another worker, as it is told."""

from collections.abc import Mapping

from stafette.workers.handover.exports import Exported


def told_of(exported: Exported) -> Mapping[str, object]:
    return {"num_tokens": exported.num_tokens, "num_cached_tokens": exported.num_cached_tokens}
