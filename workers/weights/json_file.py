"""Reads the JSON files of a model's directory."""

import json
from pathlib import Path
from typing import Any

from stafette.workers.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. CheckpointError when the file is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = f"cannot be read: {error.strerror}; download it again"
        raise CheckpointError(path.name, str(path), remedy) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path.name, str(path), f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path.name, str(path), "must hold a JSON object")
    return value
