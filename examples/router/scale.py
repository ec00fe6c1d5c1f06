"""How many requests and workers one router serves.

    python examples/router/scale.py [--quick] [--json FILE]

All options are those of `benchmarks/router/scale.py`, which this runs.
"""

import runpy
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "router"

if __name__ == "__main__":
    runpy.run_path(str(_BENCHMARKS / "scale.py"), run_name="__main__")
