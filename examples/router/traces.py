"""What a trace of requests makes of policies, on simulated workers.

    python examples/router/traces.py [--quick] [--json FILE]

All options are those of `benchmarks/router/traces.py`, which this runs.
"""

import runpy
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "router"

if __name__ == "__main__":
    runpy.run_path(str(_BENCHMARKS / "traces.py"), run_name="__main__")
