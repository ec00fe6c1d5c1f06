"""Estimate how fast a model is on hardware that is not here: the same profile, from data sheets."""

import argparse
from pathlib import Path

from stafette.platform.commands.telling import tell
from stafette.platform.profiling.document import Document
from stafette.platform.profiling.estimating import Worker, estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_worker(parser)
    add = parser.add_argument
    add("--tp", type=int, default=1, metavar="DEVICES", help="that share a model (default: 1)")
    add("--max-num-batched-tokens", type=int, default=8192, help="default: %(default)s")
    add("--max-num-seqs", type=int, default=256, help="default: %(default)s")
    add("--out", type=Path, help="for the profile, JSON")
    add("--mocker", type=Path, metavar="FILE", help="write the step model alone, for mock workers")
    add("--charts", type=Path, metavar="DIR", help="draw the profile")


def add_worker(parser: argparse.ArgumentParser) -> None:
    """Add what names a model and a device."""
    add = parser.add_argument
    add("--model", required=True, help="a config.json, its directory, or a name as Qwen3-8B")
    add("--hardware", required=True, help="a name as H100, or a YAML file of one device")
    add("--dtype", help="bfloat16, float16, float32 or fp8 (default: the model's)")
    add("--max-model-len", type=int, help="default: what the model was made for")


def run(arguments: argparse.Namespace) -> int:
    document = estimate(
        Worker(
            model=arguments.model,
            hardware=arguments.hardware,
            tensor_parallel=arguments.tp,
            dtype=arguments.dtype,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
            max_num_seqs=arguments.max_num_seqs,
            max_model_len=arguments.max_model_len,
        )
    )
    print(table(document))
    from stafette.platform.commands.profiling_command import draw, write_mocker

    if arguments.out:
        document.write(arguments.out)
        tell(f"the profile is in {arguments.out}")
    if arguments.mocker:
        write_mocker(document, arguments.mocker)
    if arguments.charts:
        draw(document, arguments.out or Path(f"{arguments.hardware}.json"), arguments.charts)
    return 0


def table(document: Document) -> str:
    """Return what is assumed, and the times by prompt, and by batch and context."""
    told, found = document.subject, document.fit
    shares = ", ".join(f"{name} {share}" for name, share in told["efficiencies"].items())
    lines = [
        f"{told['model']} on {told['tensor_parallel_size']} x {told['hardware']}, {told['dtype']}",
        f"  {told['data_sheet']}",
        f"  shares of the sheet's rates: {shares}",
        f"  {told['weight_bytes'] / 2**30:.1f} GiB of weights, "
        f"{document.base.kv_bytes_per_token:,} bytes of KV a token, "
        f"{document.limits.kv_tokens:,} tokens of KV fit",
        "",
        f"{'prompt, tokens':<20}{'first token, ms':>16}",
    ]
    for point in document.points:
        if point.kind == "prefill" and not point.cached_tokens:
            lines.append(f"{point.prompt_tokens:<20,}{point.ms:>16.1f}")
    decodes = [point for point in document.points if point.kind == "decode"]
    contexts = sorted({point.context_tokens for point in decodes})
    times = {(point.batch, point.context_tokens): point.ms for point in decodes}
    lines += ["", "step, ms, by batch and context"]
    lines.append(f"{'':<8}" + "".join(f"{context:>10,}" for context in contexts))
    for batch in sorted({point.batch for point in decodes}):
        row = [times.get((batch, context)) for context in contexts]
        cells = "".join(f"{'-' if ms is None else format(ms, '.1f'):>10}" for ms in row)
        lines.append(f"{batch:<8}{cells}")
    lines.append("")
    for context in contexts:
        most = min(document.limits.max_num_seqs, document.limits.kv_tokens // context)
        lines.append(f"contexts of {context:,}: {most} sequences at once")
    lines.append(
        f"the step model is off by {found.mean_error:.1%} on average, {found.max_error:.1%} most"
    )
    return "\n".join(lines)
