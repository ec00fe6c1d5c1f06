"""The example of docs/tiers.md, as a reader would run it."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "tiers.md"


def test_example_saves_a_prompt_and_gets_it_back(tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)

    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert "the slots may be used again" in done.stdout
    assert "10 blocks need not be computed" in done.stdout
