"""What the GPU benchmark counts; its times need a GPU."""

import pytest
import torch

from benchmarks.engine import gpu_decode
from benchmarks.engine.gpu_decode import Case


def test_step_reads_every_weight_once_and_each_context():
    parameters, token = 596_049_920, 28 * 2 * 8 * 128  # Qwen3-0.6B: 0.6 billion, embedding tied

    assert gpu_decode.step_bytes(Case(1, 0)) == 2 * parameters
    assert gpu_decode.step_bytes(Case(4, 100)) == 2 * (parameters + 4 * 100 * token)


def test_sequences_share_no_block():
    inputs = gpu_decode.decode_step(Case(3, 40))

    assert inputs.block_tables.shape == (3, 3)
    assert len(set(inputs.block_tables.flatten().tolist())) == 9
    assert inputs.num_tokens == inputs.num_seqs == 3
    assert set(inputs.positions.tolist()) == {39}


def test_nominal_bandwidth_is_known_by_the_device_name():
    assert gpu_decode.nominal_bandwidth("NVIDIA H200") == 4800
    assert gpu_decode.nominal_bandwidth("NVIDIA Nothing") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu_decode"])

    assert gpu_decode.main() == 2
    assert "no CUDA GPU" in capsys.readouterr().err
