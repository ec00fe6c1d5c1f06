"""Runs aiperf, NVIDIA's client, against an OpenAI server and reads what it found."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.engine.peers import PeerMissing, call, environment_of, safetensors

PACKAGE = "aiperf==0.13.0"
MODEL = "smollm2"
INPUT_TOKENS, OUTPUT_TOKENS = 256, 64
_RUN_S = 900.0

Found = dict[str, float]


@dataclass(frozen=True, slots=True)
class Aiperf:
    command: Path
    tokenizer: Path

    # What a figure is called here, and where aiperf has it.
    FIGURES: ClassVar[dict[str, tuple[str, str]]] = {
        "requests/s": ("request_throughput", "avg"),
        "tokens/s": ("output_token_throughput", "avg"),
        "TTFT p50, ms": ("time_to_first_token", "p50"),
        "TTFT p99, ms": ("time_to_first_token", "p99"),
        "ITL p50, ms": ("inter_token_latency", "p50"),
        "ITL p99, ms": ("inter_token_latency", "p99"),
    }

    @classmethod
    def of(cls, folder: Path, install: bool) -> "Aiperf":
        home = environment_of(folder / "aiperf", PACKAGE, install)
        return cls(home / "bin" / "aiperf", safetensors(folder / "smollm2-bf16"))

    def measure(self, url: str, concurrency: int, count: int) -> Found:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, object] = {
                "-m": MODEL,
                "-u": url,
                "--endpoint-type": "chat",
                "--tokenizer": self.tokenizer,
                "--isl": INPUT_TOKENS,
                "--osl": OUTPUT_TOKENS,
                "--extra-inputs": "ignore_eos:true",
                "--concurrency": concurrency,
                "--request-count": count,
                "--output-artifact-dir": folder,
                "--ui": "none",
            }
            words = [str(word) for pair in options.items() for word in pair]
            call([str(self.command), "profile", "--streaming", *words], _RUN_S)
            files = list(Path(folder).rglob("profile_export_aiperf.json"))
            if not files:
                raise PeerMissing(f"aiperf wrote no figures for {url}")
            told = json.loads(files[0].read_text())
        return {name: float(told[key][part]) for name, (key, part) in self.FIGURES.items()}
