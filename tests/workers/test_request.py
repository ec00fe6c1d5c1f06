"""What a request asks of its text must be something that it lets the engine make."""

import pytest

from stafette.workers import SamplingParams
from stafette.workers.errors import RequestError
from stafette.workers.request import Request


def test_a_stop_string_without_text_to_look_in_is_refused():
    params = SamplingParams(stop=("\n",))

    with pytest.raises(RequestError, match=r"stop = .*use stop_token_ids"):
        Request(request_id="a", prompt_token_ids=[1], params=params, detokenize=False)
