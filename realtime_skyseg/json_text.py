"""JSON from elsewhere."""

import json
from typing import Any


def load(text: str | bytes) -> Any:
    """What a JSON text says. Raises `ValueError`, also for one that is nested too deeply for Python."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
