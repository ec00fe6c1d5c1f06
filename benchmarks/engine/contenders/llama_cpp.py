"""llama.cpp's own llama-batched-bench, a process a run. Arguments: its folder, the GGUF.

Every case is tried once with one thread and once with two or more; the faster count stays: its
threads wait for each other in a spin barrier, which on a busy machine can cost a hundred times.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.engine.contenders.protocol import Answer, Case, own_stdout, serve

_TIMEOUT_S = 900.0
_PATIENCE_S = 10.0  # over what one thread took
_SPARE_TOKENS = 64  # of context, beyond what the case fills


class LlamaCpp:
    """Remembers the better number of threads for each shape of a case."""

    def __init__(self, folder: Path, gguf: Path) -> None:
        self._folder = folder
        self._gguf = gguf
        self._threads: dict[tuple[int, int, int], int] = {}

    def run(self, case: Case) -> Answer:
        if case.output_tokens == 1:
            return self._first_token(case)
        shape = (case.sequences, case.prompt_tokens, case.output_tokens)
        if shape in self._threads:
            return self._batched_bench(case, self._threads[shape])
        self._threads[shape], answer = self._best(case)
        print(f"{shape}: {self._threads[shape]} threads are best", file=sys.stderr)
        return answer

    def _best(self, case: Case) -> tuple[int, Answer]:
        """Return the better number of threads, with its run."""
        started = time.perf_counter()
        single = self._batched_bench(case, 1)
        patience = time.perf_counter() - started + _PATIENCE_S
        cores = len(os.sched_getaffinity(0))
        try:
            many = self._batched_bench(case, cores, patience)
        except subprocess.TimeoutExpired:
            return 1, single
        return (cores, many) if many.seconds < single.seconds else (1, single)

    def _batched_bench(self, case: Case, threads: int, timeout_s: float = _TIMEOUT_S) -> Answer:
        context = case.total_tokens + _SPARE_TOKENS
        shape = {"npp": case.prompt_tokens, "ntg": case.output_tokens, "npl": case.sequences}
        flags = [item for name, value in shape.items() for item in (f"-{name}", str(value))]
        flags += ["-c", str(context), "-b", "2048", "-ub", "512", "--output-format", "jsonl"]
        output = self._call("llama-batched-bench", flags, threads, timeout_s)
        found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        return Answer(found["t"], found["tg"] * found["pl"], found["t_pp"])

    def _first_token(self, case: Case) -> Answer:
        flags = ["-p", "word " * case.prompt_tokens, "-n", "1", "-no-cnv", "--no-warmup"]
        started = time.perf_counter()
        self._call("llama-completion", flags, 1)
        seconds = time.perf_counter() - started
        return Answer(seconds, 1, start_s=seconds)

    def _call(
        self, program: str, flags: list[str], threads: int, timeout_s: float = _TIMEOUT_S
    ) -> str:
        command = [str(self._folder / program), "-m", str(self._gguf), *flags]
        done = subprocess.run(
            [*command, "-t", str(threads), "-tb", str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "LD_LIBRARY_PATH": str(self._folder)},
            timeout=timeout_s,
            check=True,
        )
        return done.stdout.decode(errors="replace")


def main() -> None:
    channel = own_stdout()
    serve(LlamaCpp(Path(sys.argv[1]), Path(sys.argv[2])).run, channel)


if __name__ == "__main__":
    main()
