"""What KV-aware placement is worth, by how much of the prompts is shared.

    python examples/router/prefix_ratio.py [--quick] [--json FILE]

All options are those of `benchmarks/router/prefix_ratio.py`, which this runs.
"""

import runpy
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "router"

if __name__ == "__main__":
    runpy.run_path(str(_BENCHMARKS / "prefix_ratio.py"), run_name="__main__")
