"""Runs the Triton kernels' tests on this CPU, through Triton's interpreter.

In a process of their own: Triton reads TRITON_INTERPRET when it is imported, and the rest of the
tests must not see it. On a GPU the same tests run compiled, in the main process.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
# Interpreted, values that fp8 cannot hold are not rounded as a GPU rounds them.
CONTRACT = "triton and not random and not (stored and fp8_pool)"
SUITES = {
    "attention_contract": ["workers/attention/test_contract.py", "-k", CONTRACT],
    "kernels": [
        f"workers/gpu/test_{name}.py"
        for name in ("attention_kernels", "fused_kernels", "quantized_kernels", "fused_models")
    ],
}


@pytest.mark.parametrize("suite", SUITES)
def test_kernels_are_right_when_interpreted(suite):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]

    run = subprocess.run(
        [*command, *SUITES[suite]], cwd=TESTS, env=environment, capture_output=True, text=True
    )

    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout
    assert " skipped" not in run.stdout
