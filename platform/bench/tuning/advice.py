"""What came of the trials: the flags to take, and why, as text and as a file for `serve`."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from stafette.platform.bench.comparing import Difference
from stafette.platform.bench.results import not_written
from stafette.platform.bench.tuning.knobs import Flags, as_words
from stafette.platform.bench.tuning.searching import Outcome


def verdict(difference: Difference | None, best: Flags) -> tuple[str, bool]:
    """Return what a second look at both servers says, and whether the flags are to be taken."""
    if not best:
        return "no flag that was tried is better than the defaults", False
    if difference is None:
        return "taken as measured once: this goal is not compared with intervals", True
    shown = f"{difference.name}: {difference.a:,.4g} before, {difference.b:,.4g} after"
    interval = (
        f"ratio {difference.ratio:.3f}, 95 % of {difference.low:.3f} to {difference.high:.3f}"
    )
    better = "better" in difference.verdict
    end = "" if better else ": keep the defaults, for a second look does not confirm it"
    return f"{shown}; {interval}{end}", better


def described(outcome: Outcome, said: str, taken: bool) -> str:
    flags = outcome.best.flags if taken else {}
    lines = [f"two equal servers differ by {outcome.noise:.1%}: smaller gains are not counted"]
    lines += [f"  {reason}" for reason in outcome.reasons()]
    lines.append(said)
    words = " ".join(as_words(flags)) or "(the defaults)"
    return "\n".join([*lines, f"recommended: {words}"])


def write_config(path: Path, model: str, flags: Flags, reasons: Sequence[str]) -> None:
    """Write a file that `stafette serve` takes."""
    told = {"model": model} | ({"engine": dict(flags)} if flags else {})
    why = "".join(f"# {reason}\n" for reason in reasons)
    try:
        path.write_text(why + yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from None
