"""stafette with the embedded model. Flags of the engine follow as JSON: '{"runner": "torch"}'."""

import json
import sys
import time
from statistics import median

from benchmarks.engine.contenders.protocol import Answer, Case, own_stdout, serve
from stafette.workers import LLM, SamplingParams


def runner(llm: LLM, case: Case) -> Answer:
    params = SamplingParams(temperature=0.0, max_tokens=case.output_tokens, ignore_eos=True)
    prompts = case.prompts()
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    waits = [
        output.metrics.first_token - output.metrics.arrival
        for output in outputs
        if output.metrics.first_token is not None
    ]
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return Answer(seconds, tokens, median(waits) if waits else None)


def main() -> None:
    channel = own_stdout()
    flags = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    with LLM(**flags) as llm:
        serve(lambda case: runner(llm, case), channel)


if __name__ == "__main__":
    main()
