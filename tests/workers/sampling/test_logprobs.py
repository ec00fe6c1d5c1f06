"""Log probabilities against torch's log_softmax."""

import numpy as np
import pytest
import torch

from stafette.workers.sampling.device_logits import DeviceLogits
from stafette.workers.sampling.host_logits import HostLogits
from stafette.workers.sampling.logprobs import prompt_logprobs, token_logprobs

VOCAB = 50_001  # no multiple of anything: the last blocks are not full


def make_logits(rows: int) -> torch.Tensor:
    values = np.random.default_rng(3).normal(size=(rows, VOCAB)) * 3
    return torch.from_numpy(values.astype(np.float32))


def test_prompt_tokens_are_scored_by_the_row_before_them() -> None:
    logits = make_logits(25)
    targets = [(i * 1999) % VOCAB for i in range(25)]

    scored = prompt_logprobs(logits, targets, 3)

    reference = torch.log_softmax(logits.double(), -1)
    best = reference.topk(3)
    for i, item in enumerate(scored):
        assert item.token_id == targets[i]
        assert item.logprob == pytest.approx(float(reference[i, targets[i]]), abs=1e-5)
        assert item.rank == int((reference[i] > reference[i, targets[i]]).sum()) + 1
        assert list(item.top) == best.indices[i].tolist()
        assert list(item.top.values()) == pytest.approx(best.values[i].tolist(), abs=1e-5)


def test_prompt_of_one_token_has_nothing_to_score() -> None:
    assert prompt_logprobs(make_logits(0), [], 3) == []


def test_torch_and_numpy_score_alike() -> None:
    logits = make_logits(3)

    on_device = token_logprobs(DeviceLogits(logits), [5, 6, 7], [2, 0, 4])

    on_host = token_logprobs(HostLogits(logits.numpy()), [5, 6, 7], [2, 0, 4])
    assert [item.rank for item in on_device] == [item.rank for item in on_host]
    assert [list(item.top) for item in on_device] == [list(item.top) for item in on_host]
    for one, other in zip(on_device, on_host, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-6)


def test_more_logprobs_than_tokens_gives_them_all() -> None:
    (scored,) = token_logprobs(HostLogits(np.zeros((1, 4), np.float32)), [2], [9])

    assert scored.top == pytest.approx(dict.fromkeys(range(4), -np.log(4)))
