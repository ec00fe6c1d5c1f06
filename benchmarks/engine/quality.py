"""Does the fast path still say what the model says? Its perplexity beside that of plain fp32.

    python benchmarks/engine/quality.py [--quick] [--json FILE]

The reference is the same checkpoint, dequantized to fp32 and run on torch; the text is fixed.
"""

import argparse
from dataclasses import dataclass
from math import exp, expm1
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.report import Goal, Report
from stafette.workers import LLM

TEXT = Path(__file__).with_name("quality_text.txt")
TITLE = "The fast path's quality"
EXACT = {"runner": "torch", "dtype": "float32", "attention_backend": "torch"}
WINDOW = 1024  # tokens that are scored together, from an empty context

_SMALL = {"max_model_len": 2 * WINDOW, "max_num_seqs": 1}


@dataclass(frozen=True, slots=True)
class Quality:
    """How far two runs of one model are apart on a text."""

    nll: float  # mean negative log likelihood of a token
    exact_nll: float
    agreement: float  # the share of positions where both would say the same next
    num_tokens: int

    @property
    def perplexity_loss_percent(self) -> float:
        """How much worse than exact; below 0 when it happens to be better."""
        return 100 * expm1(self.nll - self.exact_nll)


def measure(max_tokens: int | None = None, **flags: Any) -> Quality:
    """Return the quality of an engine with these flags on the fixed text, or its beginning."""
    tokens, (nll, best) = _score(max_tokens, flags)
    _, (exact_nll, exact_best) = _score(max_tokens, {**_model_of(flags), **EXACT})
    agreement = (best == exact_best).float().mean().item()
    return Quality(nll.mean().item(), exact_nll.mean().item(), agreement, len(tokens))


def _model_of(flags: dict[str, Any]) -> dict[str, Any]:
    return {"model": flags["model"]} if "model" in flags else {}


def _score(
    max_tokens: int | None, flags: dict[str, Any]
) -> tuple[list[int], tuple[torch.Tensor, torch.Tensor]]:
    """Return the tokens, and what an engine with these flags makes of each of them."""
    with LLM(**{**_SMALL, **flags}) as llm:
        tokens = llm.tokenizer.encode(TEXT.read_text())[:max_tokens]
        windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
        scores = [_score_window(llm, window) for window in windows if len(window) > 1]
    return tokens, (torch.cat([nll for nll, _ in scores]), torch.cat([best for _, best in scores]))


def _score_window(llm: LLM, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's negative log likelihood but the first's, and the likeliest instead."""
    logits = llm.logits(tokens)[:-1]
    following = torch.tensor(tokens[1:], device=logits.device)
    nll = torch.nn.functional.cross_entropy(logits, following, reduction="none")
    return nll, logits.argmax(dim=-1)


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="half of the text")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    quality = measure(WINDOW if arguments.quick else None)
    report = Report(f"{TITLE} on {quality.num_tokens} tokens")
    add_to(report, quality)
    return report.finish(arguments.json)


def add_to(report: Report, quality: Quality) -> None:
    """Add the figures and the goal to a report."""
    report.figure("NLL", quality.nll)
    report.figure("NLL, exact fp32", quality.exact_nll)
    report.figure("perplexity, exact fp32", exp(quality.exact_nll))
    report.figure("same likeliest token", quality.agreement)
    loss = quality.perplexity_loss_percent
    report.goal(Goal("perplexity above exact fp32, %", loss, at_most=1.0))


if __name__ == "__main__":
    raise SystemExit(main())
