"""JSON as the standard has it, without NaN and Infinity: what every file of metrics and every ``--json`` is written by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as JSON that every reader takes: null stands for a number that is infinite or not a number."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file on which nothing depends; empty where there is none, or it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
