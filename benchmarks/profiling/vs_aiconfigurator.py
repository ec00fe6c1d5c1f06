"""How far are estimates from data sheets off what AIConfigurator says, which has measured kernels?

    python benchmarks/profiling/vs_aiconfigurator.py [--quick] [--json FILE] [--peers FOLDER]

Two public models on H200, for vLLM, in bfloat16: prompts alone, and decoding steps. AIConfigurator
looks its kernels up in tables that were measured on that device. Compared are the roofline behind
`stafette estimate`, and the linear step model that is fitted to it. --quick asks less, and installs
nothing; without --quick it is installed, into an environment of its own.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common.report import Goal, Report
from benchmarks.engine.peers import DEFAULT_FOLDER, PeerMissing, call
from stafette.platform.profiling.data_sheets import hardware, model_spec
from stafette.platform.profiling.estimating import Worker, estimate, prefill_ms
from stafette.platform.profiling.first_principles import Roofline, Step
from stafette.platform.profiling.fitting import predict_ms
from stafette.platform.profiling.points import Point, steps_of

PACKAGE = "aiconfigurator==0.12.0"
SYSTEM, DEVICE, BACKEND = "h200_sxm", "H200", "vllm"
MODELS = {  # ours: theirs
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
}
PROMPTS, QUICK_PROMPTS = (512, 2048, 8192), (2048,)
BATCHES, QUICK_BATCHES = (1, 16, 64), (16,)
CONTEXT = 4000
MOST_MEAN, MOST_ONE, MOST_FITTED = 0.10, 0.25, 0.15
_BATCHED_TOKENS = 8192
_CHILD = Path(__file__).with_name("aiconfigurator_child.py")
_INSTALL_S, _ASK_S = 1200.0, 1200.0


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    tp: int
    prompt: int = 0  # 0: a decoding step
    batch: int = 0

    @property
    def name(self) -> str:
        what = (
            f"prompt of {self.prompt:,}" if self.prompt else f"step of {self.batch} x {CONTEXT:,}"
        )
        return f"{self.model.rpartition('/')[2]} tp {self.tp}: {what}"

    def asked(self) -> dict[str, Any]:
        who = {"model": MODELS[self.model], "system": SYSTEM, "backend": BACKEND, "tp": self.tp}
        if self.prompt:
            return who | {"prompt": self.prompt}
        return who | {"batch": self.batch, "context": CONTEXT}

    def roofline_ms(self) -> float:
        roofline = Roofline(model_spec(self.model), hardware(DEVICE), self.tp)
        if self.prompt:
            return prefill_ms(roofline, self.prompt, 0, _BATCHED_TOKENS)
        return roofline.step_ms(Step(decode_seqs=self.batch, decode_kv_tokens=self.batch * CONTEXT))

    def fitted_ms(self, terms: dict[str, float]) -> float:
        if self.prompt:
            steps = steps_of(self.prompt, _BATCHED_TOKENS)
            point = Point(kind="prefill", ms=1.0, prompt_tokens=self.prompt, steps=steps)
        else:
            kv_tokens = self.batch * CONTEXT
            point = Point(kind="decode", ms=1.0, batch=self.batch, kv_tokens=kv_tokens)
        return predict_ms(terms, point)


def cases(quick: bool) -> list[Case]:
    prompts, batches = (QUICK_PROMPTS, QUICK_BATCHES) if quick else (PROMPTS, BATCHES)
    found = []
    for model in MODELS:
        found += [Case(model, 1, prompt=prompt) for prompt in prompts]
        found += [Case(model, tp, batch=batch) for tp in (1, 4) for batch in batches]
    return found


def installed(folder: Path, install: bool) -> Path:
    """Return a Python that has AIConfigurator; PeerMissing when there is none."""
    home = folder / "aiconfigurator"
    python, marker = home / "bin" / "python", home / "installed.txt"
    if marker.exists() and marker.read_text() == PACKAGE:
        return python
    if not install:
        raise PeerMissing(f"{PACKAGE} is not installed in {home} yet: --quick installs nothing")
    print(f"installing {PACKAGE} into {home}", file=sys.stderr, flush=True)
    call([sys.executable, "-m", "venv", "--clear", str(home)], _INSTALL_S)
    call([str(python), "-m", "pip", "install", "-q", PACKAGE], _INSTALL_S)
    marker.write_text(PACKAGE)
    return python


def asked(python: Path, wanted: Sequence[Case]) -> list[float]:
    try:
        done = subprocess.run(
            [str(python), str(_CHILD)],
            input=json.dumps([case.asked() for case in wanted]),
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired:
        raise PeerMissing(f"AIConfigurator did not answer within {_ASK_S:.0f} s") from None
    if done.returncode:
        raise PeerMissing(f"AIConfigurator failed: {done.stderr.strip()[-300:]}")
    answers: list[float] = json.loads(done.stdout)
    return answers


def compare(wanted: Sequence[Case], theirs: Sequence[float], report: Report) -> None:
    fits = {
        (case.model, case.tp): estimate(
            Worker(
                model=case.model,
                hardware=DEVICE,
                tensor_parallel=case.tp,
                max_num_batched_tokens=_BATCHED_TOKENS,
            )
        ).fit.terms
        for case in wanted
    }
    rows: list[list[object]] = []
    off: list[float] = []
    fitted_off: list[float] = []
    for case, reference in zip(wanted, theirs, strict=True):
        ours, fitted = case.roofline_ms(), case.fitted_ms(fits[case.model, case.tp])
        off.append(ours / reference - 1)
        fitted_off.append(fitted / reference - 1)
        shown = [f"{off[-1]:+.0%}", round(fitted, 2), f"{fitted_off[-1]:+.0%}"]
        rows.append([case.name, round(reference, 2), round(ours, 2), *shown])
    headers = ["case", "AIConfigurator ms", "roofline ms", "off", "step model ms", "off "]
    report.table(f"{DEVICE}, {BACKEND}, bfloat16", headers, rows)
    report.goal(Goal("mean deviation of the roofline", mean(map(abs, off)), at_most=MOST_MEAN))
    report.goal(Goal("largest deviation of the roofline", max(map(abs, off)), at_most=MOST_ONE))
    report.goal(
        Goal("mean deviation of the step model", mean(map(abs, fitted_off)), at_most=MOST_FITTED)
    )
    report.note("the efficiencies in hardware.yaml were chosen in sight of such figures")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases; installs nothing")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--peers", type=Path, default=DEFAULT_FOLDER, metavar="FOLDER")
    arguments = parser.parse_args()
    report = Report(f"Estimates against {PACKAGE}")
    wanted = cases(arguments.quick)
    try:
        python = installed(arguments.peers, install=not arguments.quick)
        compare(wanted, asked(python, wanted), report)
    except PeerMissing as error:
        report.note(str(error))
        report.goal(Goal("mean deviation of the roofline", None, at_most=MOST_MEAN))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
