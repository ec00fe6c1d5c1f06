"""Tell how much memory a model's KV cache takes, how much of it fits, and how long it travels."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stafette.kvtransfer import sizing
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.layout import DTYPE_BYTES
from stafette.kvtransfer.sizing import KvShape, format_bytes

TIERS = ("device", "host", "disk")
_SHAPE = ("layers", "kv_heads", "head_dim")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--hf-config", metavar="FILE", help="a model's config.json, in place of the next three")
    add("--layers", type=int, metavar="N")
    add("--kv-heads", type=int, metavar="N")
    add("--head-dim", type=int, metavar="N")
    add("--dtype", choices=DTYPE_BYTES, default="bfloat16", help="default: %(default)s")
    add("--block-size", type=int, default=16, metavar="TOKENS", help="default: %(default)s")
    add("--tp", type=int, default=1, metavar="RANKS", help="tensor parallel ranks (default: 1)")
    add("--tokens", type=int, default=8192, help="of a prompt (default: %(default)s)")
    for tier in TIERS:
        add(f"--{tier}", metavar="SIZE", help=f"memory for KV on the {tier} of a rank, as 80GiB")
    add("--gb-per-s", type=float, metavar="RATE", help="at which a rank's blocks travel")
    add("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    found = describe(arguments)
    print(json.dumps(found, indent=2) if arguments.json else _text(found, arguments))
    return 0


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures, those of one rank; sizes are in bytes, times in seconds."""
    shape, size = _shape(arguments), arguments.block_size
    per_block = sizing.block_bytes(shape, size, arguments.tp)
    prompt_blocks = sizing.blocks_of(arguments.tokens, size)
    found: dict[str, Any] = {
        "token_bytes": sizing.token_bytes(shape, arguments.tp),
        "block_bytes": per_block,
        "prompt_tokens": arguments.tokens,
        "prompt_blocks": prompt_blocks,
        "prompt_bytes": prompt_blocks * per_block,
        "tiers": {},
    }
    if arguments.gb_per_s is not None:
        found["prompt_s"] = sizing.transfer_s(found["prompt_bytes"], arguments.gb_per_s)
    for tier in TIERS:
        if (given := getattr(arguments, tier)) is not None:
            blocks = sizing.blocks_in(sizing.parse_bytes(given), per_block)
            whole = blocks // prompt_blocks if prompt_blocks else 0
            found["tiers"][tier] = {"blocks": blocks, "tokens": blocks * size, "prompts": whole}
    return found


def _shape(arguments: argparse.Namespace) -> KvShape:
    if arguments.hf_config is not None:
        return shape_of(_read(arguments.hf_config), arguments.dtype)
    given = {name: getattr(arguments, name) for name in _SHAPE}
    for name, value in given.items():
        if value is None:
            flag = "--" + name.replace("_", "-")
            raise InvalidValue(flag, None, "is needed, or --hf-config FILE")
    return KvShape(given["layers"], given["kv_heads"], given["head_dim"], arguments.dtype)


def shape_of(config: Mapping[str, Any], dtype: str) -> KvShape:
    """Return the shape that a Hugging Face config tells."""
    config = config.get("text_config", config)  # of a model that sees
    try:
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        width = config.get("head_dim") or int(config["hidden_size"]) // heads
        return KvShape(layers, int(config.get("num_key_value_heads") or heads), int(width), dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidValue(
            "--hf-config", str(error), "is missing, or not what it should be"
        ) from error


def _read(path: str) -> Mapping[str, Any]:
    try:
        read = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidValue("--hf-config", path, f"cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise InvalidValue("--hf-config", path, "must hold a JSON object")
    return read


def _text(found: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    rows = [
        ("a token", format_bytes(found["token_bytes"]), ""),
        (f"a block of {arguments.block_size}", format_bytes(found["block_bytes"]), ""),
        (
            f"a prompt of {found['prompt_tokens']:,}",
            format_bytes(found["prompt_bytes"]),
            f"{found['prompt_blocks']:,} blocks{_travel(found, arguments)}",
        ),
    ]
    for tier, fits in found["tiers"].items():
        what = (
            f"{fits['blocks']:,} blocks = {fits['tokens']:,} tokens = {fits['prompts']:,} prompts"
        )
        rows.append(
            (f"the {tier}", format_bytes(sizing.parse_bytes(getattr(arguments, tier))), what)
        )
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join(["On each rank:" if arguments.tp > 1 else "KV cache:", *lines])


def _travel(found: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    if "prompt_s" not in found:
        return ""
    return f", {1e3 * found['prompt_s']:,.3g} ms at {arguments.gb_per_s:g} GB/s"
