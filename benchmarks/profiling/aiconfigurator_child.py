"""Asks AIConfigurator, in whose environment it runs: cases as JSON in, milliseconds as JSON out.

A case: {"model", "system", "backend", "tp", "prompt"} for the time of a prompt alone, or, with
"batch" and "context" in place of "prompt", for that of a decoding step.
"""

import json
import sys

from aiconfigurator.cli.api import cli_estimate  # type: ignore[import-not-found]


def ask(case: dict[str, object]) -> float:
    common = {"backend_name": case["backend"], "tp_size": case["tp"]}
    if "prompt" in case:
        found = cli_estimate(
            case["model"],
            case["system"],
            mode="static_ctx",
            isl=case["prompt"],
            osl=1,
            batch_size=1,
            **common,
        )
        return float(found.ttft)
    found = cli_estimate(
        case["model"],
        case["system"],
        mode="static_gen",
        isl=case["context"],
        osl=2,
        batch_size=case["batch"],
        **common,
    )
    return float(found.tpot)


def main() -> None:
    out = sys.stdout
    sys.stdout = sys.stderr  # it speaks a lot
    answers = [ask(case) for case in json.load(sys.stdin)]
    json.dump(answers, out)


if __name__ == "__main__":
    main()
