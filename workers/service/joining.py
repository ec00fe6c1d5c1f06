"""Several deltas as one: what waits for a slow reader is read in one go."""

from collections.abc import Sequence

from stafette.workers.request import OutputDelta


def joined(deltas: Sequence[OutputDelta]) -> OutputDelta:
    """Return what deltas of one answer say together, in their order."""
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    scores = [score for delta in deltas for score in delta.logprobs or ()]
    return OutputDelta(
        request_id=last.request_id,
        index=last.index,
        token_ids=[token for delta in deltas for token in delta.token_ids],
        text="".join([delta.text for delta in deltas]),
        logprobs=scores or last.logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        prompt_logprobs=next((d.prompt_logprobs for d in deltas if d.prompt_logprobs), None),
        num_cached_tokens=max(delta.num_cached_tokens for delta in deltas),
        error=last.error,
        embedding=last.embedding,
    )
