"""The flags that are tried, in the order in which they are tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stafette.platform.frontend.errors import InvalidSetting

Flags = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Knob:
    """`ordered`: when a step in one direction does not help, further ones are not tried."""

    name: str
    values: Sequence[Any]
    ordered: bool = True


# What fits first, then how many at once, then how much a step takes.
KNOBS = (
    Knob("gpu_memory_utilization", (0.8, 0.85, 0.9, 0.95)),
    Knob("max_num_seqs", (16, 32, 64, 128, 256, 512)),
    Knob("max_num_batched_tokens", (512, 1024, 2048, 4096, 8192, 16_384)),
    Knob("enable_chunked_prefill", (True, False), ordered=False),
)
QUICK_KNOBS = (
    Knob("max_num_seqs", (2, 8, 256)),
    Knob("max_num_batched_tokens", (256, 512, 2048)),
)
# Six servers beside each other: what each flag does alone, and all of them together, twice.
_EAGER: Flags = {"enforce_eager": True, "async_scheduling": False, "dtype": "auto"}
ABLATION: Mapping[str, Flags] = {
    "1-eager": _EAGER,
    "2-eager-async": {**_EAGER, "async_scheduling": True},
    "3-eager-fp8kv": {**_EAGER, "kv_cache_dtype": "fp8"},
    "4-eager-bf16-fp8kv": {**_EAGER, "kv_cache_dtype": "fp8", "dtype": "bfloat16"},
    "5-graphs-bf16-fp8kv": {
        "enforce_eager": False,
        "async_scheduling": False,
        "kv_cache_dtype": "fp8",
        "dtype": "bfloat16",
    },
    "6-all": {
        "enforce_eager": False,
        "async_scheduling": True,
        "kv_cache_dtype": "fp8",
        "dtype": "bfloat16",
    },
}


def chosen_knobs(names: Sequence[str] | None, knobs: Sequence[Knob]) -> list[Knob]:
    known = {knob.name: knob for knob in knobs}
    for name in names or ():
        if name not in known:
            remedy = f"is not tried here; there are {', '.join(known)}"
            raise InvalidSetting("--knobs", name, remedy)
    return [knob for knob in knobs if names is None or knob.name in names]


def label_of(flags: Flags) -> str:
    """Return a name that a folder may have."""
    if not flags:
        return "base"
    words = [f"{name}-{str(value).replace('.', '_')}" for name, value in sorted(flags.items())]
    return "--".join(words)


def as_words(flags: Flags) -> list[str]:
    """Return the command line's flags, as stafette and vLLM take them."""
    words: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words
