"""What goes to a page: numbers as JSON that JavaScript reads back to the bit, arrays as base64 of float32."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np

from surefoot.microscope.slide import Opened


def plain(value: Any) -> Any:
    """Numbers that are not finite as the words that JavaScript's Number() reads."""
    match value:
        case float():
            if math.isfinite(value):
                return value
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return value


def as_json(content: Any) -> str:
    """JSON of plain values, whatever numbers are among them."""
    return json.dumps(plain(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def slide_parcel(opened: Opened) -> dict[str, Any]:
    """The slide with the arrays that its page draws."""
    found = json.loads(opened.slide.model_dump_json())
    wanted = [name for position in opened.slide.positions for name in (position.hidden, position.flows_back)]
    if opened.slide.mountain:
        wanted.append(opened.slide.mountain.surface)
    arrays = {name: opened.arrays[name] for name in wanted if name in opened.arrays}
    return {"slide": found, "arrays": {name: _packed(array) for name, array in arrays.items()}}


def _packed(array: np.ndarray) -> dict[str, Any]:
    values = np.ascontiguousarray(array, dtype="<f4")
    return {"shape": list(values.shape), "f4": base64.b64encode(values.tobytes()).decode("ascii")}
