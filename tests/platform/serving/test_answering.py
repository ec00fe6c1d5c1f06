"""One answer's text, however its tokens come."""

import pytest

from stafette.platform.serving.answering import AnswerText
from stafette.workers import SamplingParams
from stafette.workers.request import OutputDelta, Request
from stafette.workers.service.joining import joined


def answer_text(tokenizer, **params) -> AnswerText:
    request = Request(request_id="r", prompt_token_ids=[1], params=SamplingParams(**params))
    return AnswerText(tokenizer, request, index=2)


@pytest.mark.parametrize("num_together", [1, 2, 5, 100])
def test_answer_ends_behind_its_stop_string_however_many_tokens_come_together(
    tokenizer, num_together
):
    token_ids = tokenizer.encode("One, two, three, four, five, six, seven.")
    one_by_one = answer_text(tokenizer, stop=("four",))
    shown = []
    for token in token_ids:
        shown.append(one_by_one.read(OutputDelta("leg", 0, [token], "")))
        if shown[-1].finish_reason:
            break

    together, seen = answer_text(tokenizer, stop=("four",)), []
    for start in range(0, len(token_ids), num_together):
        part = token_ids[start : start + num_together]
        seen.append(together.read(OutputDelta("leg", 0, part, "")))
        if seen[-1].finish_reason:
            break

    assert joined(seen) == joined(shown)
    assert joined(seen).text == "One, two, three, "
    assert together.token_ids == one_by_one.token_ids
    assert (seen[-1].request_id, seen[-1].index, seen[-1].stop_reason) == ("r", 2, "four")


def test_end_that_the_worker_tells_comes_with_the_last_token(tokenizer):
    text = answer_text(tokenizer, stop=("never",))
    token_ids = tokenizer.encode("One, two")

    shown = text.read(OutputDelta("leg", 0, token_ids, "", finish_reason="length"))

    assert (shown.text, shown.finish_reason) == ("One, two", "length")
    assert shown.token_ids == token_ids
