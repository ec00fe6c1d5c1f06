"""How fast the router's index and its placements are, beside Dynamo's.

    python examples/router/micro.py [--quick] [--json FILE]

All options are those of `benchmarks/router/micro.py`, which this runs.
"""

import runpy
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "router"

if __name__ == "__main__":
    runpy.run_path(str(_BENCHMARKS / "micro.py"), run_name="__main__")
