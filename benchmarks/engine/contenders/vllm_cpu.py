"""vLLM on CPU: compiled, bf16. Arguments: the model's directory, the longest sequence.

Runs in the peer's own environment, so nothing of stafette is imported here.
"""

import sys
import time
from typing import Any

from benchmarks.engine.contenders.protocol import Answer, Case, own_stdout, serve


def runner(llm: Any, case: Case) -> Answer:
    from vllm import SamplingParams  # type: ignore[import-not-found]

    params = SamplingParams(temperature=0.0, max_tokens=case.output_tokens, ignore_eos=True)
    prompts = [{"prompt_token_ids": tokens} for tokens in case.prompts()]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return Answer(seconds, sum(len(output.outputs[0].token_ids) for output in outputs))


def load(model: str, max_model_len: int) -> Any:
    from vllm import LLM

    return LLM(model=model, dtype="bfloat16", max_model_len=max_model_len, max_num_seqs=64)


def main() -> None:
    channel = own_stdout()
    llm = load(sys.argv[1], int(sys.argv[2]))
    serve(lambda case: runner(llm, case), channel)


if __name__ == "__main__":
    main()
